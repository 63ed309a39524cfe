"""``npc-engine world``: check a world's files, and see what its NPCs know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from npc_engine.cli.options import JsonOption, WorldArgument
from npc_engine.cli.output import console_for_people, print_json, printable

if TYPE_CHECKING:
    from npc_engine.world import Audience, EntityId, WorldState

app = typer.Typer(help="Check a world's files, and see what its NPCs know.", rich_markup_mode="rich")


@app.command()
def check(world: WorldArgument, as_json: JsonOption = False) -> None:
    """List every mistake of a world, one a line; exit code 2 if there is one."""
    from npc_engine.world import check_world, load_world

    problems = check_world(world)
    people = console_for_people(as_json=as_json)
    for problem in problems:
        people.print(Text(str(problem)), soft_wrap=True)
    if not problems:
        found = load_world(world)
        people.print(
            f"{world}: no mistakes; {len(found.characters)} characters, {len(found.places)} places, "
            f"{len(found.quests)} quests, {len(found.lore)} pieces of lore"
        )
    if as_json:
        listed = [
            {"file": str(each.file), "line": each.line, "field": each.field, "message": each.message}
            for each in problems
        ]
        print_json({"world": world, "problems": listed})
    if problems:
        raise typer.Exit(2)


@app.command()
def show(
    world: WorldArgument,
    npc: Annotated[
        str | None,
        typer.Option(
            "--npc", metavar="NAME", help="Show what this NPC's prompt holds.", show_default="an overview of the world"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show who and what is in a world, or the blocks of one NPC's prompt and why it knows them."""
    from npc_engine.world import WorldState, load_world

    state = WorldState.start(load_world(world))
    people = console_for_people(as_json=as_json)
    summary = _describe(state)
    if npc is None:
        people.print(Text.assemble((printable(state.info.title), "bold"), " ", printable(state.info.setting)))
        people.print(_npc_table(summary["characters"]))
        for name in ("places", "quests", "lore"):
            people.print(Text.assemble((f"{name}: ", "bold"), printable(", ".join(summary[name]))))
    else:
        npc_id = state.find_npc(npc)
        blocks = _blocks(state, npc_id)
        for block in blocks:
            because = f"  ({block['because']})" if block["because"] else ""
            people.print(Text.assemble((block["entity"], "cyan"), " ", (block["section"], "bold"), (because, "dim")))
            people.print(Text(printable(block["text"]).rstrip()))
            people.print()
        summary |= {"npc": npc_id.partition("/")[2], "blocks": blocks}
    if as_json:
        print_json(summary)


def _describe(state: WorldState) -> dict[str, Any]:
    characters = [state.character(each) for each in state.npcs()]
    return {
        "world": state.info.id,
        "title": state.info.title,
        "npcs": [character.name for character in characters],
        "places": [state.place(each).name for each in state.places()],
        "quests": [state.quest(each).title for each in state.quests()],
        "lore": [state.lore(each).title for each in state.lores()],
        "characters": [
            {"id": each.partition("/")[2], "name": character.name, "role": character.role, "place": character.place}
            for each, character in zip(state.npcs(), characters, strict=True)
        ],
    }


def _npc_table(characters: Sequence[dict[str, str]]) -> Table:
    table = Table()
    for name in ("NPC", "id", "role", "place"):
        table.add_column(name)
    for each in characters:
        table.add_row(*(Text(printable(each[name])) for name in ("name", "id", "role", "place")))
    return table


def _blocks(state: WorldState, npc_id: EntityId) -> list[dict[str, str]]:
    from npc_engine.dialogue.render import HEADER, render_layout

    blocks = [{"entity": "engine", "section": "header", "text": HEADER, "because": "it begins every prompt"}]
    for each in render_layout(state, npc_id, state.players()[0]):
        because = _because(state, npc_id, each.entity)
        blocks.append({"entity": each.entity, "section": each.section, "text": each.text, "because": because})
    return blocks


def _because(state: WorldState, npc_id: EntityId, entity: EntityId) -> str:
    """Why an NPC knows a fact; empty for what has no audience."""
    from npc_engine.world import Kind, known_stage, split

    match split(entity)[0]:
        case Kind.LORE:
            return _membership(state, npc_id, state.lore(entity).audience)
        case Kind.QUEST:
            quest = state.quest(entity)
            stage = known_stage(state, npc_id, quest)
            assert stage is not None, "a quest that an NPC has not heard of has no block"
            membership = _membership(state, npc_id, quest.audience if stage.audience == "everyone" else stage.audience)
            later = "" if stage.id == quest.stage else f"; it has not heard that the quest is at {quest.stage!r}"
            return f"stage {stage.id!r}, {membership}{later}"
    return ""


def _membership(state: WorldState, npc_id: EntityId, audience: Audience) -> str:
    if audience == "everyone":
        return "everyone knows it"
    key = npc_id.partition("/")[2]
    if key in audience:
        return f"the audience names {key}"
    return f"the audience names place:{state.character(npc_id).home}, its home"
