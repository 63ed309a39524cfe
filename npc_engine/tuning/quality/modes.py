"""The ways to put blocks together that an evaluation compares: ours, full attention, and what others do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from npc_engine.blocks import Block, Layout
from npc_engine.dialogue.render import BlockText
from npc_engine.errors import ConfigError
from npc_engine.inference.attention import ContextWeighting
from npc_engine.inference.context_policy import ContextPolicy
from npc_engine.inference.relinking import RelinkExtent
from npc_engine.runtime.fidelity import Fidelity
from npc_engine.runtime.linking import Linking, OwnedBlock, everything_before, header_only, in_groups, own_sheet

_SLOT_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Mode:
    """How blocks are linked when they are encoded, and what is done with them in a prompt. `summary` is for people."""

    name: str
    summary: str
    linking: Linking = header_only
    policy: ContextPolicy = field(default_factory=ContextPolicy)


def _alone(header: Block, before: Sequence[OwnedBlock], text: BlockText) -> tuple[Block, ...]:
    return ()


def _is_context(block: Block) -> bool:
    """True for the blocks between header and conversation; a turn has all of them as parents."""
    return len(block.parents) <= 1


def _local_positions(blocks: tuple[Block, ...]) -> Layout:
    """Every key stays where it was computed, on top of the others; the conversation follows as if it had not."""
    layout = Layout.of(blocks)
    positions = [p.block.start if _is_context(p.block) else p.position for p in layout.placements]
    return Layout.at(blocks, positions, layout.end)


def _slots(blocks: tuple[Block, ...]) -> Layout:
    """Prompt Cache (arXiv 2311.04934): every block in a slot of its own with room to spare."""
    positions: list[int] = []
    end = 0
    for block in blocks:
        positions.append(end)
        size = block.num_tokens
        end += -(-size // _SLOT_TOKENS) * _SLOT_TOKENS if block is not blocks[0] and _is_context(block) else size
    return Layout.at(blocks, positions, end)


def _parallel(blocks: tuple[Block, ...]) -> Layout:
    """Superposition prompting (arXiv 2404.06910): all blocks begin behind the header, the rest behind the longest."""
    header, *rest = blocks
    context = [block for block in rest if _is_context(block)]
    end = header.num_tokens + max((block.num_tokens for block in context), default=0)
    positions = [0, *(header.num_tokens for _ in context)]
    for turn in rest[len(context) :]:
        positions.append(end)
        end += turn.num_tokens
    return Layout.at(blocks, positions, end)


_FIXED: Final = {
    mode.name: mode
    for mode in (
        Mode("full", "full attention: everything behind everything before it", everything_before),
        Mode("block", "the engine's default: blocks behind the header"),
        Mode("own-sheet", "memories behind their owner's sheet", own_sheet),
        Mode("block-no-header", "every block entirely alone", _alone),
        Mode("no-position", "keys keep their local positions", policy=ContextPolicy(arrange=_local_positions)),
        Mode("prompt-cache", "fixed slots with gaps, blocks alone", _alone, ContextPolicy(arrange=_slots)),
        Mode("superposition", "blocks at parallel positions", policy=ContextPolicy(arrange=_parallel)),
    )
}
_RELINK: Final = re.compile(r"relink-([1-9]\d*)(%?)")
_GROUPS: Final = re.compile(r"group-([1-9]\d*)")
_APE: Final = re.compile(r"ape(?:-(\d*\.?\d+)-(\d*\.?\d+))?")


def parse_mode(name: str) -> Mode:
    """A mode by name. Raises :class:`ConfigError` that lists the names."""
    if name in _FIXED:
        return _FIXED[name]
    if name in set(Fidelity):
        return Mode(name, f"--fidelity {name}", Fidelity(name).linking)
    if match := _RELINK.fullmatch(name):
        number, is_share = int(match[1]), bool(match[2])
        which = f"the {number} % of tokens that deviate most" if is_share else f"the first {number} tokens of each"
        extent = RelinkExtent(share=min(1.0, number / 100)) if is_share else RelinkExtent(num_tokens=number)
        return Mode(name, f"blocks, {which} computed again in idle time", policy=ContextPolicy(relink=extent))
    if match := _GROUPS.fullmatch(name):
        return Mode(name, f"neighbours encoded together, {match[1]} tokens or more", in_groups(int(match[1])))
    if match := _APE.fullmatch(name):
        temperature, scale = float(match[1] or 0.9), float(match[2] or 0.95)
        if temperature > 0 and scale > 0:
            weighting = ContextWeighting(temperature, scale)
            summary = f"blocks, attention to them at temperature {temperature:g} and scale {scale:g}"
            return Mode(name, summary, policy=ContextPolicy(weighting=weighting))
    names = ", ".join((*_FIXED, *Fidelity))
    raise ConfigError(
        f"--modes: no mode {name!r}; there are {names}, relink-K and group-K (tokens), relink-P% (of the tokens), ape "
        "and ape-TEMPERATURE-SCALE"
    )
