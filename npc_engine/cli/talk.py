"""A talk with NPCs, as text for people: what ``play`` does, whether typed, scripted or given by ``--say``."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from npc_engine.cli.comparison import Comparison, comparison_table, median_figures
from npc_engine.cli.output import printable

if TYPE_CHECKING:
    from npc_engine.runtime import NpcEngine, NpcInfo, Reply, ReplyStream, WorldChange

_NUM_PREFILLS: Final = 3
_TIER_STYLES: Final = {"memory": "green", "disk": "yellow", "missing": "red"}


class Talk:
    """Does things with an engine and prints what came of them.

    With `compare`, every reply is followed by full prefills of its prompt, in idle time, and :meth:`finish` prints the
    comparison. `results` holds every reply as JSON.
    """

    def __init__(self, engine: NpcEngine, console: Console, *, player: str, compare: bool = False) -> None:
        self.engine = engine
        self.results: list[dict[str, Any]] = []
        self._console = console
        self._player = player
        self._compare = compare
        self._comparisons: list[Comparison] = []
        self._speaking: ReplyStream | None = None

    async def say(self, npc: str, text: str) -> Reply:
        """Say something and print the reply while it is spoken, then its figures."""
        stream = self.engine.say(npc, text, player=self._player)
        self._speaking = stream
        try:
            self._console.print(Text(f"{self._name(stream.npc)}: ", style="bold cyan"), end="")
            async for delta in stream:
                self._console.print(printable(delta.text), end="", soft_wrap=True)
                self._console.file.flush()
        finally:
            self._speaking = None
            self._console.print()
        reply = await stream.result()
        self._console.print(Text(_figures(reply), style="dim"), soft_wrap=True)
        self.results.append({"npc": reply.npc, "player": reply.player, "text": text, **_reply_to_json(reply)})
        if self._compare:
            await self._measure(reply)
        return reply

    def echo(self, text: str) -> None:
        """Print what the player says."""
        name = self.engine.state.player(_player_entity(self._player)).name
        self._console.print(Text.assemble((f"{name}: ", "bold"), printable(text)), soft_wrap=True)

    def cancel(self) -> None:
        """Let the NPC who speaks fall silent. On the event loop."""
        if self._speaking is not None:
            self._speaking.cancel()

    async def prepare(self, npc: str, *, always: bool = True) -> None:
        """Have an NPC's blocks in memory; unless `always`, say so only if something had to be encoded."""
        done = await self.engine.prepare(npc, player=self._player)
        if done.num_left_out:
            self._console.print(
                Text(f"{done.num_left_out} blocks left out: no room within --max-context-tokens", style="yellow")
            )
        if always or done.num_encoded_tokens:
            self._console.print(
                Text(
                    f"prepared in {done.elapsed_ms:,.0f} ms: {done.num_blocks} blocks, {done.num_tokens:,} tokens, "
                    f"{done.num_encoded_tokens:,} of them encoded",
                    style="dim",
                ),
                soft_wrap=True,
            )

    async def set(self, assignment: str, npc: str | None = None) -> None:
        """Change the world as ``pointer=value`` says; with `npc`, bring its blocks up to date at once."""
        started_s = time.monotonic()
        change = await self.engine.patch([self.engine.state.parse_assignment(assignment)])
        self._print_change(change, started_s)
        if npc is not None:
            await self.prepare(npc, always=False)

    async def advance(self, minutes: int, npc: str | None = None) -> None:
        """Let game time pass."""
        from npc_engine.world import clock

        started_s = time.monotonic()
        change = await self.engine.advance(minutes)
        now = self.engine.state.time
        self._console.print(Text(f"it is day {now.day}, {clock(now)}"))
        self._print_change(change, started_s)
        if npc is not None:
            await self.prepare(npc, always=False)

    async def show_blocks(self, npc: str) -> None:
        """Print the layout of an NPC's prompt."""
        views = await self.engine.layout(npc, player=self._player)
        table = Table(title=f"{len(views)} blocks, {sum(view.num_tokens for view in views):,} tokens")
        for name, justify in (("position", "right"), ("tokens", "right"), ("entity", "left"), ("section", "left")):
            table.add_column(name, justify="right" if justify == "right" else "left")
        table.add_column("tier")
        table.add_column("text", no_wrap=True, overflow="ellipsis", max_width=48)
        for view in views:
            table.add_row(
                f"{view.position:,}",
                f"{view.num_tokens:,}",
                Text(view.entity),
                Text(view.section),
                Text(view.tier.value, style=_TIER_STYLES[view.tier.value]),
                Text(printable(view.text).replace("\n", " ")),
            )
        self._console.print(table)

    def show_npcs(self, current: str | None = None, *, numbered: bool = False) -> None:
        """Print who there is."""
        table = Table()
        for name in (*(["#"] if numbered else []), "NPC", "id", "role", "place"):
            table.add_column(name)
        for number, npc in enumerate(self.engine.npcs(), start=1):
            cells = (npc.name, npc.id, npc.role, npc.place)
            numbers = [str(number)] if numbered else []
            table.add_row(*numbers, *map(Text, cells), style="bold" if npc.id == current else None)
        self._console.print(table)

    async def save(self, name: str) -> None:
        """Save the game."""
        earlier = next((info for info in await self.engine.saves() if info.name == name), None)
        info = await self.engine.save(name)
        instead = f", in place of the one of tick {earlier.tick}" if earlier is not None else ""
        self._console.print(Text(f"saved {info.name!r} at tick {info.tick}, {info.num_bytes:,} bytes{instead}"))

    async def load(self, name: str) -> None:
        """Go on from a save."""
        info = await self.engine.load(name)
        self._console.print(Text(f"loaded {info.name!r} of tick {info.tick}"))

    async def show_saves(self) -> None:
        """Print the saves of this world, newest first."""
        saves = await self.engine.saves()
        for info in saves:
            written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.written_s))
            self._console.print(Text(f"{info.name}  tick {info.tick}, {written}, {info.num_bytes:,} bytes"))
        if not saves:
            self._console.print("no saves of this world yet; /save NAME makes one")

    def finish(self) -> dict[str, Any]:
        """Print the comparison, if there is one; returns the JSON object of the whole talk."""
        if self._comparisons:
            self._console.print()
            self._console.print(comparison_table(self._comparisons))
        model = self.engine.model_info
        summary: dict[str, Any] = {
            "model": model.name,
            "device": model.device,
            "dtype": model.dtype,
            "world": self.engine.world_info.id,
            "replies": self.results,
        }
        if self._comparisons:
            summary["medians"] = median_figures(self._comparisons)
        return summary

    async def _measure(self, reply: Reply) -> None:
        times_ms = [await self.engine.full_prefill_ms(reply.request_id) for _ in range(_NUM_PREFILLS)]
        comparison = Comparison(reply, statistics.median(times_ms))
        self._comparisons.append(comparison)
        self.results[-1]["full_prefill_ms"] = comparison.full_prefill_ms

    def _print_change(self, change: WorldChange, started_s: float) -> None:
        elapsed_ms = (time.monotonic() - started_s) * 1000
        entities = ", ".join(change.entities) or "nothing"
        blocks = f"{change.num_changed_blocks} new block{'' if change.num_changed_blocks == 1 else 's'}"
        line = f"changed {entities} at tick {change.tick}, after {elapsed_ms:.0f} ms; {blocks} near a player"
        self._console.print(Text(line, style="dim"), soft_wrap=True)

    def _name(self, npc: str) -> str:
        return next(each.name for each in self.engine.npcs() if each.id == npc)


def npc_names(npcs: Sequence[NpcInfo]) -> str:
    """``Odile Farrant (odile), ...``."""
    return ", ".join(f"{npc.name} ({npc.id})" for npc in npcs)


def _figures(reply: Reply) -> str:
    """One line of latencies and counts."""
    stats = reply.stats
    parts = [
        f"TTFT {stats.ttft_ms:,.0f} ms",
        f"{stats.num_prompt_tokens:,} tokens in the prompt",
        f"{stats.num_cached_tokens:,} from cache",
        f"{stats.num_encoded_tokens:,} encoded",
        f"{stats.num_reply_tokens:,} in the reply",
    ]
    decode_s = (stats.total_ms - stats.ttft_ms) / 1000
    if stats.num_reply_tokens > 1 and decode_s > 0:
        parts.append(f"{(stats.num_reply_tokens - 1) / decode_s:,.1f} tok/s")
    if reply.finish_reason.value != "stop":
        parts.append(reply.finish_reason.value)
    return " | ".join(parts)


def _reply_to_json(reply: Reply) -> dict[str, Any]:
    return {
        "speech": reply.speech,
        "emotion": reply.emotion,
        "actions": [dataclasses.asdict(action) for action in reply.actions],
        "finish_reason": reply.finish_reason.value,
        **dataclasses.asdict(reply.stats),
    }


def _player_entity(player: str) -> Any:
    from npc_engine.world import Kind, entity_id

    return entity_id(Kind.PLAYER, player)
