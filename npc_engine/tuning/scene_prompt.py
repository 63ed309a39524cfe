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
    texts = scene.texts_at(turn)
    return tuple(_blocks(scene, texts))


def scene_turns(scene: Scene) -> tuple[SampleTurn, ...]:
    """The scene's turns with their reference replies and the blocks that belong to each; those without end it."""
    turns = []
    for index, turn in enumerate(scene.turns):
        if not turn.reply:
            break
        blocks = tuple(block.text for block in scene_blocks(scene, index))
        turns.append(SampleTurn(turn.player, turn.reply, blocks))
    return tuple(turns)


def _blocks(scene: Scene, texts: Mapping[str, str]) -> Iterator[BlockText]:
    npc = entity_id(EntityKind.CHARACTER, "npc")
    for block in scene.world:
        yield BlockText(entity_id(EntityKind.LORE, block.id), "text", _line(texts[block.id]))
    character = scene.character
    for i, block in enumerate(character.sheet):
        identity = f"You are {character.name}, {character.role}. " if i == 0 else ""
        yield BlockText(npc, f"sheet/{block.id}", _line(identity + texts[block.id]))
    for block in scene.memories:
        yield BlockText(npc, f"memories/{block.id}", _line(as_memory(texts[block.id])))
    for block in scene.location:
        yield BlockText(entity_id(EntityKind.PLACE, "here"), block.id, _line(texts[block.id]))


def as_memory(text: str) -> str:
    """Labelled as the engine labels memories, unless it is labelled or is JSON already."""
    return text if text.startswith(("Your memory", "{", "[")) else f"Your memory: {text}"


def _line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
