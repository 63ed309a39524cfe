"""What a recording says against what its replay gave: the first difference, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from npc_engine.blocks import Block
from npc_engine.inference import FinishReason
from npc_engine.runtime.recording_lines import (
    RecordedBlock,
    RecordedInput,
    RecordedPassTime,
    RecordedPatch,
    RecordedPrompt,
    RecordedReply,
    RecordedReplyEnded,
    RecordedSay,
    Tick,
    prompt_blocks,
)
from npc_engine.runtime.session import DuePrompt, SessionOutputs

NameToken = Callable[[Sequence[int]], str]
"""Shows the first of some token ids to people; ``the end`` if there is none."""


class MismatchError(Exception):
    """A replay differs from its recording; `npc` is whom it happened to, if it was one."""

    def __init__(self, what: str, npc: str | None = None) -> None:
        super().__init__(what)
        self.npc = npc


class Asked(NamedTuple):
    """A prompt that became due at a tick, as recorded and as replayed."""

    tick: int
    recorded: RecordedPrompt
    due: DuePrompt


class Spoken(NamedTuple):
    """A reply that has ended and waits for the tick that takes it in. It stands in line `number`."""

    number: int
    line: RecordedReply


def check_prompts(line: Tick, outputs: SessionOutputs, name_token: NameToken) -> None:
    """The same replies are due, and their prompts are equal, block by block."""
    recorded_ids = [prompt.request_id for prompt in line.prompts]
    due_ids = [each.due.request_id for each in outputs.prompts]
    if recorded_ids != due_ids:
        failed = [each for each in outputs.failed if each.request_id in recorded_ids]
        reasons = "; ".join(f"no prompt for request {each.request_id}: {each.error}" for each in failed)
        raise MismatchError(
            f"replies due: recorded for requests {brief(recorded_ids)}, replayed {brief(due_ids)}"
            + (f" ({reasons})" if reasons else "")
        )
    for recorded, due in zip(line.prompts, outputs.prompts, strict=True):
        _check_prompt(recorded, due, name_token)


def check_outcome(line: Tick, outputs: SessionOutputs, digest: str) -> None:
    """The same requests were refused, the same entities changed, and the state is equal."""
    refused = tuple(each.request_id for each in outputs.world.refused)
    # A patch that no JSON can hold was refused and is not among the inputs.
    recorded_refused = tuple(r for r in line.refused if r in {each.request_id for each in line.inputs})
    if recorded_refused != refused:
        reasons = "; ".join(str(each.error) for each in outputs.world.refused)
        raise MismatchError(
            f"refused requests: recorded {brief(recorded_refused)}, replayed {brief(refused)}"
            + (f" ({brief(reasons)})" if reasons else "")
        )
    changed = tuple(sorted(outputs.world.changed))
    if line.changed != changed:
        raise MismatchError(
            f"changed entities: recorded {brief(line.changed)}, replayed {brief(changed)}; inputs: "
            f"{describe(line.inputs)}"
        )
    if line.digest != digest:
        raise MismatchError(
            f"state: recorded {line.digest[:16]}, replayed {digest[:16]}; inputs: {describe(line.inputs)}"
        )


def check_unanswered(ended: RecordedReplyEnded) -> None:
    """Nothing enters the simulation of a reply that is not recorded."""
    if ended.speech is not None or ended.sampled_token_ids or ended.num_folded:
        raise MismatchError(f"request {ended.request_id} was answered, but its reply is not recorded", ended.npc)


def check_ended(ended: RecordedReplyEnded, asked: Asked, spoken: Spoken | None) -> None:
    """A reply enters the simulation as it was spoken: everything that the session relies on is as recorded."""
    conversation = asked.due.due.conversation
    if (ended.player, ended.npc) != tuple(conversation):
        raise MismatchError(
            f"the reply to request {ended.request_id} is of {ended.npc} to {ended.player}, not of "
            f"{conversation.npc} to {conversation.player}"
        )
    if spoken is None:
        check_unanswered(ended)
        return
    line = spoken.line
    expected = {
        "speech": line.speech if line.turn_id is not None else None,
        "sampled_token_ids": line.sampled_token_ids,
        "is_stopped": line.finish_reason is FinishReason.STOP,
        "num_folded": line.num_folded,
    }
    for field, value in expected.items():
        actual = getattr(ended, field)
        if actual != value:
            raise MismatchError(
                f"reply of request {ended.request_id}: {field}: line {spoken.number} has {brief(value)}, "
                f"this one {brief(actual)}",
                ended.npc,
            )


def check_turn(ended: RecordedReplyEnded, asked: Asked, spoken: Spoken, turn: Block) -> None:
    """The session sealed the block that the recorded engine sealed."""
    if turn.id.hex() != spoken.line.turn_id:
        raise MismatchError(
            f"block {ended.npc} turn/{len(asked.due.prompt.turns) + 1 - ended.num_folded} of request "
            f"{ended.request_id}: recorded {str(spoken.line.turn_id)[:16]}, replayed {turn.id.hex()[:16]}",
            ended.npc,
        )


def _check_prompt(recorded: RecordedPrompt, due: DuePrompt, name_token: NameToken) -> None:
    npc = due.due.conversation.npc
    if (recorded.player, recorded.npc) != tuple(due.due.conversation):
        raise MismatchError(
            f"request {recorded.request_id}: recorded of {recorded.npc} to {recorded.player}, replayed of {npc} to "
            f"{due.due.conversation.player}",
        )
    for was, now in zip_longest(recorded.blocks, prompt_blocks(npc, due.prompt)):
        _check_block(npc, was, now)
    final = due.prompt.final_token_ids
    if recorded.final_token_ids != final:
        at = next(i for i, (a, b) in enumerate(zip_longest(recorded.final_token_ids, final)) if a != b)
        raise MismatchError(
            f"final block, token {at}: recorded {name_token(recorded.final_token_ids[at : at + 1])}, replayed "
            f"{name_token(final[at : at + 1])}",
            npc,
        )
    seed = due.due.seed if recorded.sampling.seed is None else recorded.sampling.seed
    if recorded.seed != seed:
        raise MismatchError(f"seed of request {recorded.request_id}: recorded {recorded.seed}, replayed {seed}", npc)


def _check_block(npc: str, was: RecordedBlock | None, now: RecordedBlock | None) -> None:
    if was == now:
        return
    if was is None or now is None or was.owner != now.owner:
        raise MismatchError(f"layout: recorded {_named(was)}, replayed {_named(now)}", npc)
    if was.id != now.id:
        raise MismatchError(
            f"block {was.entity} {was.section}: recorded {was.id[:16]} ({was.num_tokens} tokens), replayed "
            f"{now.id[:16]} ({now.num_tokens} tokens)",
            npc,
        )
    raise MismatchError(
        f"block {was.entity} {was.section}: recorded with {was.num_tokens} tokens, replayed with {now.num_tokens}",
        npc,
    )


def _named(block: RecordedBlock | None) -> str:
    return f"{block.entity} {block.section}" if block is not None else "the end"


def brief(value: object, max_chars: int = 120) -> str:
    """A value in one short line."""
    text = value if isinstance(value, str) else ", ".join(map(str, value)) if isinstance(value, list | tuple) else None
    text = str(value) if text is None else text
    return (text if len(text) <= max_chars else text[: max_chars - 1] + "…") or "none"


def describe(inputs: Sequence[RecordedInput]) -> str:
    """The inputs of a tick in few words."""
    words = []
    for each in inputs:
        match each:
            case RecordedPatch():
                words.append(f"patch {each.request_id} of {brief([str(o.get('path')) for o in each.operations])}")
            case RecordedPassTime():
                words.append(f"{each.minutes} minutes pass")
            case RecordedSay():
                words.append(f"{each.player} says {brief(each.text, 40)!r} to {each.npc}")
            case RecordedReplyEnded():
                words.append(f"the reply of {each.npc} to request {each.request_id} ended")
    return "; ".join(words)
