"""What listeners hear of the world."""

from __future__ import annotations

import asyncio

import pytest

from npc_engine.errors import EngineClosedError
from npc_engine.runtime.events import Broadcaster, Changes, WorldChange


def change(tick: int, *entities: str) -> WorldChange:
    return WorldChange(tick, entities, 1)


async def test_each_listener_hears_every_change_from_when_it_subscribed() -> None:
    """In order, and nothing after it left."""
    broadcaster = Broadcaster()
    broadcaster.publish(change(1, "a"))
    async with broadcaster.subscribe() as first:
        broadcaster.publish(change(2, "a"))
        async with broadcaster.subscribe() as second:
            broadcaster.publish(change(3, "b"))
        assert [(await anext(first)).tick for _ in range(2)] == [2, 3]
        assert (await anext(second)).tick == 3
    broadcaster.publish(change(4, "a"))
    assert broadcaster._listeners == set()


async def test_a_slow_listener_misses_no_entity() -> None:
    """200 changes become 64; the newest ones are merged, and every entity is named."""
    changes = Changes()
    for tick in range(200):
        changes.put(change(tick, f"e{tick}"))
    heard = [await anext(changes) for _ in range(64)]
    assert [each.tick for each in heard] == [*range(63), 199]
    assert heard[-1].num_changed_blocks == 200 - 63
    assert {entity for each in heard for entity in each.entities} == {f"e{tick}" for tick in range(200)}
    assert changes._queue == []


async def test_close_ends_those_who_wait_after_what_is_queued() -> None:
    """What was published before is still heard."""
    broadcaster = Broadcaster()
    async with broadcaster.subscribe() as changes:
        waiter = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        broadcaster.publish(change(1, "a"))
        broadcaster.publish(change(2, "a"))
        broadcaster.close()
        assert (await waiter).tick == 1
        assert (await anext(changes)).tick == 2
        with pytest.raises(EngineClosedError):
            await anext(changes)


async def test_subscribing_after_the_end_ends_at_once() -> None:
    """EngineClosedError, as for those who were there."""
    broadcaster = Broadcaster()
    broadcaster.close()
    with pytest.raises(EngineClosedError):
        async with broadcaster.subscribe() as changes:
            await asyncio.wait_for(anext(changes), 0.2)
