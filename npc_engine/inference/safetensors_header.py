"""The header of a safetensors file, read to find damage before a loader trips over it."""

from __future__ import annotations

import json
from pathlib import Path

from npc_engine.errors import ModelError

_MAX_HEADER_SIZE = 100_000_000  # the format's own limit


def read_tensor_names(path: Path) -> frozenset[str]:
    """Names of the tensors in the file at `path`, which must be as long as its header says.

    Reads the header only. Raises :class:`ModelError` naming the file if it is missing, cut short or damaged.
    """
    remedy = "fetch or convert the checkpoint again"
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if num_bytes < 8 or not 2 <= header_size <= min(num_bytes - 8, _MAX_HEADER_SIZE):
                raise ModelError(f"{path}: no safetensors file, or cut short; {remedy}")
            header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        end = 8 + header_size + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}; {remedy}") from error
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise ModelError(f"{path}: its safetensors header is damaged; {remedy}") from error
    if end != num_bytes:
        raise ModelError(f"{path}: {num_bytes} bytes where its header says {end}; {remedy}")
    return frozenset(header)
