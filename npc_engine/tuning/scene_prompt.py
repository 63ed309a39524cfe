"""From a scene to the blocks of a prompt, in the order and the forms in which the engine renders a world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from npc_engine.dialogue.render import BlockText
from npc_engine.tuning.samples import SampleTurn
from npc_engine.tuning.scenes import Scene
from npc_engine.world import Kind as EntityKind
from npc_engine.world import entity_id


def scene_blocks(scene: Scene, turn: int) -> tuple[BlockText, ...]:
    """What the NPC knows when this turn begins: world, character, memories, place."""
    return tuple(blocks_by_id(scene, turn).values())


def blocks_by_id(scene: Scene, turn: int) -> dict[str, BlockText]:
    """:func:`scene_blocks`, each under the id that the scene gives it."""
    return dict(_blocks(scene, scene.texts_at(turn)))


def scene_turns(scene: Scene) -> tuple[SampleTurn, ...]:
    """The scene's turns with their reference replies and the blocks that belong to each; those without end it."""
    turns = []
    for index, turn in enumerate(scene.turns):
        if not turn.reply:
            break
        texts = {name: block.text for name, block in blocks_by_id(scene, index).items()}
        sources = tuple(texts[name] for name in turn.needs)
        turns.append(SampleTurn(turn.player, turn.reply, tuple(texts.values()), sources))
    return tuple(turns)


def _blocks(scene: Scene, texts: Mapping[str, str]) -> Iterator[tuple[str, BlockText]]:
    npc = entity_id(EntityKind.CHARACTER, "npc")
    for block in scene.world:
        yield block.id, BlockText(entity_id(EntityKind.LORE, block.id), "text", _line(texts[block.id]))
    character = scene.character
    for i, block in enumerate(character.sheet):
        identity = f"You are {character.name}, {character.role}. " if i == 0 else ""
        yield block.id, BlockText(npc, f"sheet/{block.id}", _line(identity + texts[block.id]))
    for block in scene.memories:
        yield block.id, BlockText(npc, f"memories/{block.id}", _line(as_memory(texts[block.id])))
    for block in scene.location:
        yield block.id, BlockText(entity_id(EntityKind.PLACE, "here"), block.id, _line(texts[block.id]))


def as_memory(text: str) -> str:
    """Labelled as the engine labels memories, unless it is labelled or is JSON already."""
    return text if text.startswith(("Your memory", "{", "[")) else f"Your memory: {text}"


def _line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
