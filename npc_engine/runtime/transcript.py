"""What a player saw and did in a recorded talk, by time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from npc_engine.runtime.recording import Recording
from npc_engine.runtime.recording_lines import (
    RecordedInput,
    RecordedPassTime,
    RecordedPatch,
    RecordedReply,
    RecordedReplyEnded,
    RecordedSay,
    Tick,
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """Somebody said something to an NPC."""

    at_ms: float
    player: str
    npc: str
    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """The world changed, or something went wrong; `text` is a line for people."""

    at_ms: float
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An NPC answered: the first token came at `at_ms`, the last at `end_ms`."""

    at_ms: float
    end_ms: float
    player: str
    npc: str
    reply: RecordedReply

    def pieces(self) -> list[tuple[float, str]]:
        """The speech in words, with when each was spoken; only the first and the last time were recorded."""
        words = self.reply.speech.split(" ")
        texts = [word + " " for word in words[:-1]] + words[-1:]
        step = (self.end_ms - self.at_ms) / len(texts)
        return [(self.at_ms + step * i, text) for i, text in enumerate(texts)]


Moment = Utterance | Event | Answer


def transcript(recording: Recording) -> list[Moment]:
    """What a player saw and did, by time."""
    names = recording.header.names
    moments: list[Moment] = []
    for _, line in recording.lines:
        match line:
            case Tick():
                refused = set(line.refused)
                for each in line.inputs:
                    moments += _moments(line.at_ms, each, names, is_refused=each.request_id in refused)
            case RecordedReply():
                start_ms = max(0.0, line.at_ms - line.total_ms + line.ttft_ms)
                player, npc = names.get(line.player, line.player), names.get(line.npc, line.npc)
                moments.append(Answer(min(start_ms, line.at_ms), line.at_ms, player, npc, line))
    return sorted(moments, key=lambda moment: moment.at_ms)


def _moments(at_ms: float, each: RecordedInput, names: dict[str, str], *, is_refused: bool) -> list[Moment]:
    match each:
        case RecordedSay():
            return [Utterance(at_ms, names.get(each.player, each.player), names.get(each.npc, each.npc), each.text)]
        case RecordedPassTime():
            return [Event(at_ms, f"{each.minutes} minutes pass")]
        case RecordedPatch():
            prefix = "refused: " if is_refused else ""
            return [Event(at_ms, prefix + _operation(operation)) for operation in each.operations]
        case RecordedReplyEnded(speech=None, npc=npc):
            return [Event(at_ms, f"{names.get(npc, npc)} did not answer")]
        case _:
            return []


def _operation(operation: Mapping[str, object]) -> str:
    path = str(operation.get("path", "")).removeprefix("/")
    if "value" in operation:
        value = operation["value"]
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return f"{path} = {text}"
    origin = f" from {operation['from']}" if "from" in operation else ""
    return f"{operation.get('op')} {path}{origin}"
