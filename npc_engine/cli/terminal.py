"""Free talk in the terminal: lines that are typed, and slash commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from npc_engine.cli.loop_thread import LoopThread
from npc_engine.cli.output import printable, well_formed
from npc_engine.cli.talk import Talk, npc_names
from npc_engine.errors import UserError

HELP: Final = """\
/who                  who there is, and where
/npc NAME             speak to somebody else
/blocks               the layout of this NPC's prompt, block by block
/set POINTER=VALUE    change the world: /set places/basin/conditions/lamp=The signal lamp is green.
/tick [MINUTES]       let game time pass (10 minutes)
/save NAME            save the game
/load NAME            go on from a save
/saves                the saves of this world
/quit                 leave; so do Ctrl-D, and Ctrl-C at the prompt. Ctrl-C while an NPC speaks stops the reply
Everything else is said to the NPC."""

_DEFAULT_MINUTES: Final = 10


class Terminal:
    """One talk, line by line, on the main thread; the engine lives on `loop`."""

    def __init__(self, loop: LoopThread, talk: Talk, console: Console) -> None:
        self._loop = loop
        self._talk = talk
        self._console = console
        self._npc = ""

    def run(self, npc: str | None) -> None:
        """Talk until the user leaves. Without `npc` the user picks one first."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then keeps a history)

        with contextlib.suppress(EOFError, KeyboardInterrupt):
            if npc is None:
                self._pick()
            else:
                self._attach(npc)
            self._console.print("/help lists the commands", style="dim")
            while self._obey(self._read(f"{self._npc}> ")):
                pass

    def _obey(self, line: str) -> bool:
        """Do what one line says; False when it says to leave. A mistake is shown, and the talk goes on."""
        try:
            if line.startswith("/"):
                return self._command(*line[1:].partition(" ")[::2])
            if line:
                self._loop.run(self._talk.say(self._npc, line), on_interrupt=self._talk.cancel)
        except UserError as error:
            self._console.print(Text(printable(str(error)), style="red"), soft_wrap=True)
        return True

    def _command(self, name: str, rest: str) -> bool:
        talk, rest = self._talk, rest.strip()
        match name:
            case "help" | "?":
                self._console.print(HELP)
            case "who":
                talk.show_npcs(self._npc)
            case "npc":
                self._attach(_required(rest, "/npc NAME", npc_names(talk.engine.npcs())))
            case "blocks":
                self._wait(talk.show_blocks(self._npc))
            case "set":
                self._wait(talk.set(_required(rest, "/set POINTER=VALUE"), self._npc))
            case "tick":
                self._wait(talk.advance(_minutes(rest), self._npc))
            case "save":
                self._wait(talk.save(_required(rest, "/save NAME")))
            case "load":
                self._wait(talk.load(_required(rest, "/load NAME")))
            case "saves":
                self._wait(talk.show_saves())
            case "quit" | "exit" | "q":
                return False
            case _:
                raise UserError(f"no command /{name}; /help lists them")
        return True

    def _attach(self, npc: str) -> None:
        """Speak to this NPC from now on."""
        entity = self._talk.engine.state.find_npc(npc)
        self._npc = entity.partition("/")[2]
        self._wait(self._talk.prepare(self._npc))

    def _pick(self) -> None:
        npcs = self._talk.engine.npcs()
        self._talk.show_npcs(numbered=True)
        while not self._npc:
            answer = self._read("who do you want to speak to (number or name)? ")
            is_number = answer.isdecimal() and 1 <= int(answer) <= len(npcs)
            try:
                self._attach(npcs[int(answer) - 1].id if is_number else answer)
            except UserError as error:
                self._console.print(Text(printable(str(error)), style="red"), soft_wrap=True)

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run(work)

    def _read(self, prompt: str) -> str:
        """One line. Raises EOFError at the end of the input."""
        if sys.stdin.isatty() and sys.stdout.isatty():
            return well_formed(input(prompt)).strip()
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        line = well_formed(line).strip()
        self._console.print(Text(f"{prompt}{printable(line)}"), soft_wrap=True)  # a transcript shows both sides
        return line


def _required(rest: str, usage: str, choices: str = "") -> str:
    if not rest:
        raise UserError(f"write {usage}" + (f"; there are: {choices}" if choices else ""))
    return rest


def _minutes(rest: str) -> int:
    if not rest:
        return _DEFAULT_MINUTES
    if not rest.isdecimal() or len(rest) > 9:
        raise UserError(f"/tick {rest}: write a number of minutes")
    return int(rest)
