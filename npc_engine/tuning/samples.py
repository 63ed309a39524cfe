"""What a model is tuned on: prompts in blocks, and the replies to learn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from npc_engine.errors import SampleError
from npc_engine.tuning.scenes import Scene

_FORMS: Final = (
    '{"blocks": [texts], "final": utterance, "reply": text}, {"messages": [{"role", "content"}, ...]} or a scene'
)


@dataclass(frozen=True, slots=True)
class SampleTurn:
    """An utterance and its reply.

    `blocks` are the texts that the NPC had when it replied, `sources` those of them in which the answer stands, as far
    as that is known.
    """

    player: str
    reply: str
    blocks: tuple[str, ...]
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation over blocks, without header and chat template.

    The replies of the last `num_targets` turns are learned; the turns before them are history. All targets have the
    same blocks; history may have been spoken over others, which a game has changed since.
    """

    turns: tuple[SampleTurn, ...]
    num_targets: int

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks as they are now."""
        return self.turns[-1].blocks

    @property
    def history(self) -> tuple[SampleTurn, ...]:
        return self.turns[: len(self.turns) - self.num_targets]

    @property
    def targets(self) -> tuple[SampleTurn, ...]:
        return self.turns[len(self.turns) - self.num_targets :]


def split_at_changes(turns: Sequence[SampleTurn]) -> Iterator[Sample]:
    """One sample for every stretch of a conversation in which no block changes, with all that was said before it."""
    start = 0
    for end in range(1, len(turns) + 1):
        if end == len(turns) or turns[end].blocks != turns[start].blocks:
            yield Sample(tuple(turns[:end]), end - start)
            start = end


def read_lines(path: Path) -> list[Scene | Sample]:
    """Read a JSON Lines file of samples or scenes. Raises :class:`SampleError` with ``file:line:`` and the remedy."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{path}: can't be read ({error})") from error
    read: list[Scene | Sample] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            read.append(_parse(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise SampleError(f"{path}:{number}: {reason}; a line is {_FORMS}") from error
    if not read:
        raise SampleError(f"{path}: holds no sample; a line is {_FORMS}")
    return read


def _parse(line: object) -> Scene | Sample:
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    if "character" in line:
        return Scene.model_validate(line)
    if "messages" in line:
        return _from_messages(line)
    return _from_blocks(line)


def _from_blocks(line: Mapping[str, Any]) -> Sample:
    unknown = set(line) - {"blocks", "final", "reply"}
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    blocks = tuple(_text(each, "blocks") for each in _list(line, "blocks"))
    turn = SampleTurn(_text(line.get("final"), "final"), _text(line.get("reply"), "reply"), blocks)
    return Sample((turn,), 1)


def _from_messages(line: Mapping[str, Any]) -> Sample:
    """Chat messages: what the system says is one block, every answer is learned. `blocks` may come beside them."""
    blocks = [_text(each, "blocks") for each in line.get("blocks", ())]
    turns: list[SampleTurn] = []
    player: str | None = None
    for message in _list(line, "messages"):
        role, content = message.get("role"), _text(message.get("content"), "messages.content")
        if role == "system" and not turns and player is None:
            blocks.append(content)
        elif role == "user" and player is None:
            player = content
        elif role == "assistant" and player is not None:
            turns.append(SampleTurn(player, content, tuple(blocks)))
            player = None
        else:
            raise ValueError(f"messages: a message of role {role!r} can't stand here; user and assistant alternate")
    if not turns:
        raise ValueError("messages: no answer to learn")
    return Sample(tuple(turns), len(turns))


def _list(line: Mapping[str, Any], name: str) -> list[Any]:
    value = line.get(name)
    if not isinstance(value, list):
        raise ValueError(f"{name}: a list is expected")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: a text is expected, not {value!r}")
    return value
