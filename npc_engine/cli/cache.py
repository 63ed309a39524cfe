"""``npc-engine cache``: the blocks on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npc_engine.cli.options import DataDirOption, JsonOption, data_dir, parse_size
from npc_engine.cli.output import console_for_people, human_bytes, print_json

if TYPE_CHECKING:
    from npc_engine.blocks import BlockStore

app = typer.Typer(help="Look after the blocks on disk. They can always be computed again.", rich_markup_mode="rich")


@app.command()
def stats(folder: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show how many blocks and saves there are, and what they take."""
    from npc_engine.runtime import SaveStore

    root = data_dir(folder)
    saves = SaveStore(root / "saves.sqlite")
    summary: dict[str, object] = {"folder": str(root / "blocks"), "num_blocks": 0, "num_bytes": 0, "num_kept": 0}
    with _open(root) as store:
        if store is not None:
            found = store.stats()
            num_kept = sum(block_id in store for block_id in saves.block_ids())
            summary |= {"num_blocks": found.num_blocks, "num_bytes": found.num_bytes, "num_kept": num_kept}
    summary |= {"num_saves": len(saves.list())}
    console_for_people(as_json=as_json).print(
        f"{summary['folder']}: {summary['num_blocks']} blocks, {_human(summary['num_bytes'])}; "
        f"{summary['num_saves']} saves refer to {summary['num_kept']} of them",
        soft_wrap=True,
    )
    if as_json:
        print_json(summary)


@app.command()
def verify(folder: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Check every block; a damaged one is deleted, and will be encoded again."""
    people = console_for_people(as_json=as_json)
    num_blocks = 0
    damaged = []
    with _open(data_dir(folder)) as store:
        for block_id, damage in store.verify() if store is not None else ():
            num_blocks += 1
            if damage is not None:
                damaged.append({"block_id": block_id.hex(), "reason": damage.reason})
                people.print(f"{block_id.hex()}: {damage.reason}; deleted", soft_wrap=True)
    people.print(f"{num_blocks} blocks checked, {len(damaged)} were damaged")
    if as_json:
        print_json({"num_blocks": num_blocks, "num_damaged": len(damaged), "damaged": damaged})


@app.command()
def prune(
    max_bytes: Annotated[
        int,
        typer.Option(
            "--max-bytes",
            metavar="SIZE",
            parser=parse_size,
            help="Delete the oldest blocks until the rest takes no more.",
            show_default="0",
        ),
    ] = 0,
    keep_saves: Annotated[
        bool, typer.Option("--keep-saves/--no-keep-saves", help="Spare the blocks that saves refer to.")
    ] = True,
    folder: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete old blocks."""
    from npc_engine.runtime import SaveStore

    root = data_dir(folder)
    num_deleted, num_blocks, num_bytes = 0, 0, 0
    with _open(root) as store:
        if store is not None:
            keep = SaveStore(root / "saves.sqlite").block_ids() if keep_saves else set()
            num_deleted = store.prune(max_bytes, keep)
            num_blocks, num_bytes, _ = store.stats()
    console_for_people(as_json=as_json).print(
        f"{num_deleted} blocks deleted; {num_blocks} are left, {human_bytes(num_bytes)}"
    )
    if as_json:
        print_json({"num_deleted": num_deleted, "num_blocks": num_blocks, "num_bytes": num_bytes})


@contextlib.contextmanager
def _open(root: Path) -> Iterator[BlockStore | None]:
    """The block store of a data folder; None if nothing was ever written there."""
    from npc_engine.blocks import BlockStore
    from npc_engine.config import EngineConfig

    folder = root / "blocks"
    if not folder.is_dir():
        yield None
        return
    # Nothing is read as keys and values here, so no model's identity is needed.
    with contextlib.closing(BlockStore(folder, owner=bytes(32), max_bytes=EngineConfig().max_store_size)) as store:
        yield store


def _human(num_bytes: object) -> str:
    return human_bytes(num_bytes) if isinstance(num_bytes, int) else ""
