"""Reading JSON objects that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from npc_engine.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`. Raises :class:`ModelError` naming the file and, in bad JSON, the line."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing; a checkpoint folder needs it") from error
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: no valid JSON ({error}); fetch or convert the checkpoint again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return content
