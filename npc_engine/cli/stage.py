"""Performs a scenario: who says what, what changes meanwhile, and whether the answers are as expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from npc_engine.cli.output import printable
from npc_engine.runtime.scenario import AdvanceStep, NoteStep, SayStep, Scenario, SetStep

if TYPE_CHECKING:
    from npc_engine.cli.talk import Talk


async def perform(scenario: Scenario, talk: Talk, console: Console) -> None:
    """Play all steps in order.

    Before somebody is spoken to, its blocks are brought to memory, as they are in a game while a player walks up.
    """
    console.print(Text(printable(scenario.title), style="bold"), soft_wrap=True)
    for step in scenario.steps:
        console.print()
        match step:
            case NoteStep(_, text):
                console.print(Text(printable(text), style="italic"))
            case SetStep(_, assignment):
                console.print(Text(printable(f"/set {assignment}"), style="bold yellow"), soft_wrap=True)
                await talk.set(assignment)
            case AdvanceStep(_, minutes):
                console.print(Text(f"/tick {minutes}", style="bold yellow"))
                await talk.advance(minutes)
            case SayStep(_, npc, text, patterns):
                await talk.prepare(npc, always=False)
                talk.echo(text)
                reply = await talk.say(npc, text)
                unmet = [pattern for pattern in patterns if not pattern.search(reply.speech)]
                talk.results[-1]["expected"] = not unmet
                for pattern in unmet:
                    line = f"expected an answer with /{pattern.pattern}/"
                    console.print(Text(printable(line), style="red"), soft_wrap=True)
