"""How close to full attention a prompt is, and what that costs.

========  =====================================  =====================================================================
fast      blocks behind the header               a change costs encoding the block that changed
balanced  neighbours together, 100 tokens each   a change costs encoding the rest of its group, too
exact     full attention with a prefix cache     a change costs encoding everything behind it, in idle time if there
                                                 is any before the next utterance
========  =====================================  =====================================================================

docs/quality.md has the figures. A model that was tuned for blocks needs no more than ``fast``. All three give the same
reply whenever they are asked; re-linking (:mod:`npc_engine.inference.relinking`) would not, since it depends on how
much idle time there was, and is left to the evaluation.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from npc_engine.runtime.linking import Linking, everything_before, header_only, in_groups

_GROUP_TOKENS: Final = 100


class Fidelity(StrEnum):
    """What to give for being close to full attention; see the module's table."""

    FAST = "fast"
    BALANCED = "balanced"
    EXACT = "exact"

    @classmethod
    def of(cls, name: str, *, is_tuned: bool) -> Fidelity:
        """`name`, or for ``auto`` what suits the model: fast if it was tuned for blocks, else balanced."""
        if name == "auto":
            return cls.FAST if is_tuned else cls.BALANCED
        return cls(name)

    @property
    def linking(self) -> Linking:
        """What blocks are encoded behind."""
        return {
            Fidelity.FAST: header_only,
            Fidelity.BALANCED: in_groups(_GROUP_TOKENS),
            Fidelity.EXACT: everything_before,
        }[self]
