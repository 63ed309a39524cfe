"""Saves: what is true about a running game, in SQLite. Never keys and values."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from npc_engine.blocks import Block, BlockId
from npc_engine.dialogue.conversation import Conversation, ConversationId, Exchange
from npc_engine.errors import SaveError
from npc_engine.runtime.prompt import Transcript
from npc_engine.world import EntityId

FORMAT_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS saves (
    name TEXT PRIMARY KEY, format INTEGER NOT NULL, world TEXT NOT NULL, tick INTEGER NOT NULL,
    written_s REAL NOT NULL, body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS entity_blocks (
    save TEXT NOT NULL REFERENCES saves(name) ON DELETE CASCADE,
    entity TEXT NOT NULL, section TEXT NOT NULL, block_id BLOB NOT NULL,
    PRIMARY KEY (save, entity, section)
) WITHOUT ROWID;
"""


class EntityBlock(NamedTuple):
    """An entity owns this block; `section` is the field it was rendered from."""

    entity: EntityId
    section: str
    block_id: BlockId


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a game needs to go on as if it had never stopped.

    `state` is the world's JSON document. `transcripts` are valid for the model with `fingerprint` only; with
    another one the conversations are tokenized again.
    """

    world: str
    tick: int
    seed: int
    next_request_id: int
    fingerprint: str
    state: Mapping[str, Any]
    conversations: Mapping[ConversationId, Conversation]
    transcripts: Mapping[ConversationId, Transcript]
    entity_blocks: tuple[EntityBlock, ...]


class SaveInfo(NamedTuple):
    """`num_bytes` is the size of the save's text; `written_s` is in seconds since 1970."""

    name: str
    world: str
    tick: int
    written_s: float
    num_bytes: int


class SaveStore:
    """The saves of one data folder. A save is one transaction: after a crash it is there whole, or not at all.

    Every call opens the file and closes it again, so that it may be called from any thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, snapshot: Snapshot) -> SaveInfo:
        """Write a save, in place of an older one of that name."""
        body = json.dumps(_to_json(snapshot), separators=(",", ":"), ensure_ascii=False)
        info = SaveInfo(name, snapshot.world, snapshot.tick, time.time(), len(body.encode()))
        with self._transaction() as database:
            database.execute("DELETE FROM saves WHERE name = ?", (name,))
            database.execute(
                "INSERT INTO saves VALUES (?, ?, ?, ?, ?, ?)",
                (name, FORMAT_VERSION, info.world, info.tick, info.written_s, body),
            )
            database.executemany(
                "INSERT OR REPLACE INTO entity_blocks VALUES (?, ?, ?, ?)",
                [(name, *each) for each in snapshot.entity_blocks],
            )
        return info

    def read(self, name: str, world: str) -> Snapshot:
        """The save of that name; :class:`SaveError` if there is none, or it is another world's."""
        with self._transaction() as database:
            row = database.execute("SELECT format, world, body FROM saves WHERE name = ?", (name,)).fetchone()
            blocks = database.execute(
                "SELECT entity, section, block_id FROM entity_blocks WHERE save = ?", (name,)
            ).fetchall()
        if row is None:
            names = ", ".join(info.name for info in self.list() if info.world == world) or "none"
            raise SaveError(f"no save {name!r}; there are: {names}")
        version, saved_world, body = row
        if version != FORMAT_VERSION:
            raise SaveError(
                f"save {name!r} has format {version}, this release reads {FORMAT_VERSION}; update npc-engine"
            )
        if saved_world != world:
            raise SaveError(f"save {name!r} belongs to the world {saved_world!r}, not to {world!r}")
        try:
            return _from_json(json.loads(body), tuple(EntityBlock(EntityId(e), s, BlockId(b)) for e, s, b in blocks))
        except (KeyError, TypeError, ValueError) as error:
            raise SaveError(f"save {name!r} is damaged ({error!r}); load another") from error

    def list(self) -> list[SaveInfo]:
        """All saves, newest first."""
        if not self.path.exists():
            return []
        with self._transaction() as database:
            rows = database.execute(
                "SELECT name, world, tick, written_s, length(CAST(body AS BLOB)) FROM saves ORDER BY written_s DESC"
            ).fetchall()
        return [SaveInfo(*row) for row in rows]

    def block_ids(self) -> set[BlockId]:
        """Every block that some save refers to: what a prune should keep."""
        if not self.path.exists():
            return set()
        with self._transaction() as database:
            ids = {BlockId(row[0]) for row in database.execute("SELECT DISTINCT block_id FROM entity_blocks")}
            for (body,) in database.execute("SELECT body FROM saves"):
                for talk in json.loads(body)["conversations"]:
                    ids |= {BlockId(bytes.fromhex(turn["id"])) for turn in talk["turns"]}
        return ids

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=10)) as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")  # an acknowledged save survives a power cut
                database.execute("PRAGMA foreign_keys = ON")
                database.executescript(_SCHEMA)
                with database:
                    yield database
        except (OSError, sqlite3.Error) as error:
            raise SaveError(
                f"{self.path}: {error}; check the disk, or choose another folder with --data-dir"
            ) from error


def _to_json(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "world": snapshot.world,
        "tick": snapshot.tick,
        "seed": snapshot.seed,
        "next_request_id": snapshot.next_request_id,
        "fingerprint": snapshot.fingerprint,
        "state": snapshot.state,
        "conversations": [
            {
                "player": player,
                "npc": npc,
                "exchanges": [[exchange.utterance, exchange.speech] for exchange in conversation.exchanges],
                **_transcript_to_json(snapshot.transcripts.get(ConversationId(player, npc), Transcript())),
            }
            for (player, npc), conversation in snapshot.conversations.items()
        ],
    }


def _transcript_to_json(transcript: Transcript) -> dict[str, Any]:
    return {
        "turns": [
            {"id": turn.id.hex(), "start": turn.start, "token_ids": list(turn.token_ids)} for turn in transcript.turns
        ],
        "pending": list(transcript.pending),
    }


def _from_json(body: dict[str, Any], entity_blocks: tuple[EntityBlock, ...]) -> Snapshot:
    conversations: dict[ConversationId, Conversation] = {}
    transcripts: dict[ConversationId, Transcript] = {}
    for talk in body["conversations"]:
        conversation_id = ConversationId(EntityId(talk["player"]), EntityId(talk["npc"]))
        conversations[conversation_id] = Conversation(tuple(Exchange(*pair) for pair in talk["exchanges"]))
        # A turn is never encoded on its own, so it needs no parents: where its keys are lost, its tokens are folded.
        turns = (
            Block(BlockId(bytes.fromhex(turn["id"])), tuple(turn["token_ids"]), turn["start"], parents=())
            for turn in talk["turns"]
        )
        transcripts[conversation_id] = Transcript(tuple(turns), tuple(talk["pending"]))
    return Snapshot(
        world=body["world"],
        tick=body["tick"],
        seed=body["seed"],
        next_request_id=body["next_request_id"],
        fingerprint=body["fingerprint"],
        state=body["state"],
        conversations=conversations,
        transcripts=transcripts,
        entity_blocks=entity_blocks,
    )
