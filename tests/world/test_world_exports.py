"""The public surface of npc_engine.world."""

from __future__ import annotations

import npc_engine.world as world


def test_exported_names() -> None:
    """Everything in __all__ exists, and it is sorted; adding to it is a decision."""
    assert world.__all__ == sorted(world.__all__)
    assert [name for name in world.__all__ if not hasattr(world, name)] == []
    assert len(world.__all__) == 30
