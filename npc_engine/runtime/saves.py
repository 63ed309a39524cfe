"""Saves: what is true about a running game, in SQLite. Never keys and values."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError

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
        body = _SavedGame.of(snapshot).model_dump_json()
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
        entity_blocks = tuple(EntityBlock(EntityId(e), section, BlockId(block_id)) for e, section, block_id in blocks)
        return _SavedGame.parse(name, body).snapshot(entity_blocks)

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
            bodies = database.execute("SELECT name, body FROM saves").fetchall()
        for name, body in bodies:
            talks = _SavedGame.parse(name, body).conversations
            ids |= {turn.block_id for talk in talks for turn in talk.turns}
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


class _SavedTurn(BaseModel, extra="forbid", frozen=True, strict=True):
    id: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    start: Annotated[int, Field(ge=0)]
    token_ids: Annotated[list[int], Field(min_length=1)]

    @classmethod
    def of(cls, turn: Block) -> _SavedTurn:
        return cls(id=turn.id.hex(), start=turn.start, token_ids=list(turn.token_ids))

    @property
    def block_id(self) -> BlockId:
        return BlockId(bytes.fromhex(self.id))

    def block(self) -> Block:
        # A turn is never encoded on its own, so it needs no parents: where its keys are lost, its tokens are folded.
        return Block(self.block_id, tuple(self.token_ids), self.start, parents=())


class _SavedTalk(BaseModel, extra="forbid", frozen=True, strict=True):
    player: str
    npc: str
    exchanges: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    turns: list[_SavedTurn]
    pending: list[int]

    @property
    def id(self) -> ConversationId:
        return ConversationId(EntityId(self.player), EntityId(self.npc))


class _SavedGame(BaseModel, extra="forbid", frozen=True, strict=True):
    """The body of a save: :class:`Snapshot` without what SQLite keeps in columns and tables of its own."""

    world: str
    tick: Annotated[int, Field(ge=0)]
    seed: int
    next_request_id: Annotated[int, Field(ge=1)]
    fingerprint: str
    state: dict[str, Any]
    conversations: list[_SavedTalk]

    @classmethod
    def of(cls, snapshot: Snapshot) -> _SavedGame:
        talks = []
        for conversation_id, conversation in snapshot.conversations.items():
            transcript = snapshot.transcripts.get(conversation_id, Transcript())
            talks.append(
                _SavedTalk(
                    player=conversation_id.player,
                    npc=conversation_id.npc,
                    exchanges=[[exchange.utterance, exchange.speech] for exchange in conversation.exchanges],
                    turns=[_SavedTurn.of(turn) for turn in transcript.turns],
                    pending=list(transcript.pending),
                )
            )
        return cls(
            world=snapshot.world,
            tick=snapshot.tick,
            seed=snapshot.seed,
            next_request_id=snapshot.next_request_id,
            fingerprint=snapshot.fingerprint,
            state=dict(snapshot.state),
            conversations=talks,
        )

    @classmethod
    def parse(cls, name: str, body: str) -> _SavedGame:
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "body"
            raise SaveError(f"save {name!r} is damaged ({field}: {first['msg']}); load another") from error

    def snapshot(self, entity_blocks: tuple[EntityBlock, ...]) -> Snapshot:
        return Snapshot(
            world=self.world,
            tick=self.tick,
            seed=self.seed,
            next_request_id=self.next_request_id,
            fingerprint=self.fingerprint,
            state=self.state,
            conversations={
                talk.id: Conversation(tuple(Exchange(*pair) for pair in talk.exchanges)) for talk in self.conversations
            },
            transcripts={
                talk.id: Transcript(tuple(turn.block() for turn in talk.turns), tuple(talk.pending))
                for talk in self.conversations
            },
            entity_blocks=entity_blocks,
        )
