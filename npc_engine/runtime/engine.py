"""The engine as a game sees it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from npc_engine.blocks import BlockDamage, CacheStats, Tier
from npc_engine.clock import Clock, MonotonicClock
from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.dialogue.conversation import ConversationId
from npc_engine.dialogue.sentences import SentenceSplitter
from npc_engine.errors import EngineClosedError, NpcEngineError, UnknownNameError
from npc_engine.inference import (
    FailedOutput,
    FinishedOutput,
    FinishReason,
    GenerationRequest,
    InferenceEngine,
    Output,
    StreamDecoder,
    TokenOutput,
    WarmedOutput,
    WarmUp,
)
from npc_engine.runtime.events import Broadcaster, Changes, WorldChange
from npc_engine.runtime.loading import LoadedModel, LoadProgress, create_engine, load
from npc_engine.runtime.prompt import Prompt, Prompter
from npc_engine.runtime.reply import Reply, ReplyDelta, ReplyStats, ReplyStream
from npc_engine.runtime.saves import SaveInfo, SaveStore
from npc_engine.runtime.session import DuePrompt, Session, SessionOutputs
from npc_engine.runtime.simulation import Input, PassTime, PatchWorld, ReplyEnded, Say, Simulation
from npc_engine.runtime.tick_loop import TickLoop
from npc_engine.runtime.worker import ModelWorker
from npc_engine.world import EntityId, Kind, World, WorldState, entity_id, load_world, split

_MAX_INBOX = 4096
_MAX_REMEMBERED_PROMPTS = 32
_MAX_WARMED_NPCS = 16  # near a player at once


@dataclass(frozen=True, slots=True)
class NpcInfo:
    """An NPC as a game lists it. `place` is the key of where it is."""

    id: str
    name: str
    role: str
    place: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that speaks."""

    name: str
    architecture: str
    fingerprint: str
    adapter: str | None
    device: str
    dtype: str
    num_parameters: int


@dataclass(frozen=True, slots=True)
class BlockView:
    """One block of a prompt, for people: who owns it, how long it is, where its keys and values are."""

    entity: str
    section: str
    text: str
    block_id: str
    position: int
    num_tokens: int
    tier: Tier


class Preparation(NamedTuple):
    """What it took to have an NPC's blocks in memory."""

    num_blocks: int
    num_tokens: int
    num_encoded_tokens: int
    elapsed_ms: float


class Observer(Protocol):
    """Sees everything that a recording needs, in order, on the event loop."""

    def on_tick(self, inputs: Sequence[Input], outputs: SessionOutputs, session: Session) -> None: ...

    def on_reply(self, reply: Reply, finished: FinishedOutput) -> None: ...


@dataclass(slots=True)
class _Speaking:
    """The stream of one reply, and what it takes to feed it."""

    stream: ReplyStream
    said_s: float
    sampling: SamplingParams
    decoder: StreamDecoder
    sentences: SentenceSplitter = field(default_factory=SentenceSplitter)
    speech: str = ""
    first_token_s: float | None = None


class NpcEngine:
    """NPCs of one world, spoken for by one model::

        async with await NpcEngine.open("worlds/ninestep") as engine:
            async for delta in engine.say("odile", "Who opened the culvert?"):
                print(delta.text, end="")

    Methods are for one event loop. What changes the world takes effect at the next tick, in the order of the calls; an
    utterance makes a tick happen at once.
    """

    def __init__(
        self,
        world: World,
        loaded: LoadedModel,
        config: EngineConfig,
        *,
        clock: Clock | None = None,
        observer: Observer | None = None,
        create: Callable[[LoadedModel, EngineConfig, Callable[[BlockDamage], None]], InferenceEngine] = create_engine,
    ) -> None:
        """Use :meth:`open`, unless the model is loaded already. Call :meth:`start` before anything else."""
        self.config = config
        self._loaded = loaded
        self._model = loaded.model
        self._observer = observer
        self._session = Session(
            Simulation(WorldState.start(world), seed=config.seed),
            self._new_prompter(),
            self._model.identity.fingerprint,
        )
        self._saves = SaveStore(config.data_dir / "saves.sqlite")
        self._inbox: list[Input] = []
        self._next_request_id = 1
        self._speaking: dict[int, _Speaking] = {}
        self._changes_due: dict[int, asyncio.Future[WorldChange]] = {}
        self._prompts: OrderedDict[int, Prompt] = OrderedDict()
        self._warmed: dict[ConversationId, Prompt] = {}  # what was asked for last
        self._warming: dict[Hashable, asyncio.Future[None]] = {}
        self._broadcaster = Broadcaster()
        self._damage: list[BlockDamage] = []
        self._is_closed = False
        self._loop_task: asyncio.Task[None] | None = None
        self._ticks = TickLoop(self._tick, clock=clock or MonotonicClock(), ticks_per_s=config.ticks_per_s)
        self._worker = ModelWorker(
            lambda: create(loaded, config, self._damage.append),
            on_outputs=self._on_outputs,
            on_failure=self._on_failure,
        )

    @classmethod
    async def open(
        cls,
        world: str | Path,
        config: EngineConfig | None = None,
        *,
        on_progress: LoadProgress | None = None,
        observer: Observer | None = None,
    ) -> Self:
        """Load a world and a model, and start. Raises :class:`~npc_engine.errors.UserError` for what a user can mend.

        `on_progress` is called from another thread.
        """
        config = config or EngineConfig()
        loaded_world = load_world(Path(world))
        loaded = await asyncio.to_thread(load, config, on_progress)
        engine = cls(loaded_world, loaded, config, observer=observer)
        await engine.start()
        return engine

    async def start(self) -> None:
        """Start the model's thread and the ticks."""
        await self._worker.start()
        self._loop_task = asyncio.create_task(self._ticks.run(), name="npc-engine-ticks")
        self._loop_task.add_done_callback(self._on_loop_done)

    async def close(self) -> None:
        """Stop speaking, write the blocks to disk, end all tasks. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._end_all(EngineClosedError("the engine was closed"))
        await self._worker.close()
        self._broadcaster.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def tick(self) -> int:
        return self._session.simulation.tick

    @property
    def state(self) -> WorldState:
        """The world now. Read it; change it through :meth:`patch`."""
        return self._session.state

    @property
    def world_info(self) -> Any:
        """`id`, `title` and `setting` of the world."""
        return self._session.state.info

    @property
    def model_info(self) -> ModelInfo:
        model = self._model
        return ModelInfo(
            model.name,
            model.config.architecture,
            model.identity.fingerprint,
            model.identity.adapter,
            str(model.decoder.device),
            model.identity.dtype,
            model.decoder.weights.num_parameters,
        )

    @property
    def damage(self) -> Sequence[BlockDamage]:
        """Blocks on disk that were refused since the start; they were encoded again."""
        return tuple(self._damage)

    def npcs(self) -> tuple[NpcInfo, ...]:
        """All NPCs, by id."""
        npcs = ((split(npc)[1], self.state.character(npc)) for npc in self.state.npcs())
        return tuple(NpcInfo(key, npc.name, npc.role, npc.place) for key, npc in npcs)

    async def layout(self, npc: str, *, player: str = "player") -> tuple[BlockView, ...]:
        """The blocks of an NPC's prompt as the world is now, in order, the conversation's turns last."""
        conversation_id = self._conversation_id(npc, player)
        prompt = self._session.prompt(conversation_id)
        tokenizer = self._model.tokenizer
        names = [("engine", "header", "")]
        names += [(owned.text.entity, owned.text.section, owned.text.text) for owned in prompt.owned]
        names += [(conversation_id.npc, f"turn/{i + 1}", "") for i in range(len(prompt.turns))]
        blocks = (*prompt.blocks, *prompt.turns)
        tiers = await self._worker.call(lambda engine: engine.tiers(blocks))
        views = []
        position = 0
        for (entity, section, text), block, tier in zip(names, blocks, tiers, strict=True):
            text = text or tokenizer.decode(block.token_ids)
            views.append(BlockView(entity, section, text, block.id.hex(), position, block.num_tokens, tier))
            position += block.num_tokens
        return tuple(views)

    async def cache_stats(self) -> CacheStats:
        return await self._worker.call(lambda engine: engine.cache_stats())

    def subscribe(self) -> AbstractAsyncContextManager[Changes]:
        """``async with engine.subscribe() as changes: async for change in changes: ...``"""
        return self._broadcaster.subscribe()

    # ── talking ──────────────────────────────────────────────────────────────────────────────────────────────

    def say(
        self, npc: str, text: str, *, player: str = "player", sampling: SamplingParams | None = None
    ) -> ReplyStream:
        """Say something to an NPC, by id or name. The reply streams; while it lasts, the next utterance waits.

        Raises :class:`UnknownNameError` or :class:`UtteranceError` at once.
        """
        self._check_open()
        conversation_id = self._conversation_id(npc, player)
        self._session.prompter.check_utterance(text)
        request_id = self._new_request_id()
        stream = ReplyStream(request_id, split(conversation_id.npc)[1], player, lambda: self._cancel(request_id))
        self._speaking[request_id] = _Speaking(
            stream, time.monotonic(), sampling or self.config.sampling, StreamDecoder(self._model.tokenizer)
        )
        self._put(Say(request_id, conversation_id.player, conversation_id.npc, text))
        self._ticks.wake()
        return stream

    async def prepare(self, npc: str, *, player: str = "player") -> Preparation:
        """Have every block of an NPC in memory before somebody speaks. Waits until it is so."""
        started_s = time.monotonic()
        conversation_id = self._conversation_id(npc, player)
        prompt = self._session.prompt(conversation_id)
        tiers = await self._worker.call(lambda engine: engine.tiers(prompt.blocks))
        missing = [block for block, tier in zip(prompt.blocks, tiers, strict=True) if tier is Tier.MISSING]
        self._warm(conversation_id, prompt)
        warmed = self._warming.setdefault(conversation_id, asyncio.get_running_loop().create_future())
        await asyncio.shield(warmed)
        return Preparation(
            len(prompt.blocks),
            sum(block.num_tokens for block in prompt.blocks),
            sum(block.num_tokens for block in missing),
            (time.monotonic() - started_s) * 1000,
        )

    async def full_prefill_ms(self, request_id: int) -> float:
        """The baseline: how long this model takes to compute the whole prompt of a recent reply, nothing cached."""
        prompt = self._prompts.get(request_id)
        if prompt is None:
            raise UnknownNameError(
                f"no prompt of request {request_id}: only the last {_MAX_REMEMBERED_PROMPTS} are kept"
            )

        def measure(engine: InferenceEngine) -> float:
            started_s = time.perf_counter()
            engine.full_prefill(prompt.token_ids)
            return (time.perf_counter() - started_s) * 1000

        return await self._worker.call(measure)

    # ── changing the world ───────────────────────────────────────────────────────────────────────────────────

    async def patch(self, operations: Sequence[Mapping[str, Any]]) -> WorldChange:
        """Apply a JSON Patch (RFC 6902) at the next tick, as a whole or not at all (:class:`PatchError`)."""
        request_id = self._new_request_id()
        return await self._change(PatchWorld(request_id, tuple(operations)))

    async def advance(self, minutes: int) -> WorldChange:
        """Let game time pass. ValueError for negative minutes."""
        if minutes < 0:
            raise ValueError("minutes must not be negative")
        return await self._change(PassTime(self._new_request_id(), minutes))

    # ── saving ───────────────────────────────────────────────────────────────────────────────────────────────

    async def save(self, name: str) -> SaveInfo:
        """Write a save. When this returns, it survives a crash; its blocks are on disk, too."""
        self._check_open()
        snapshot = self._session.snapshot(self._next_request_id)
        info = await asyncio.to_thread(self._saves.write, name, snapshot)
        await self._worker.call(lambda engine: engine.flush())
        return info

    async def load(self, name: str) -> SaveInfo:
        """Go on from a save; what happened since is forgotten. Replies that are being spoken end as cancelled."""
        self._check_open()
        world = self._session.state.info.id
        snapshot = await asyncio.to_thread(self._saves.read, name, world)
        streams = [speaking.stream for speaking in self._speaking.values()]
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*(stream.result() for stream in streams), return_exceptions=True)
        self._inbox.clear()
        self._session = Session.restore(snapshot, self._new_prompter(), self._model.identity.fingerprint)
        self._next_request_id = max(self._next_request_id, snapshot.next_request_id)
        self._warmed.clear()
        saves = await asyncio.to_thread(self._saves.list)
        return next(info for info in saves if info.name == name)

    async def saves(self) -> list[SaveInfo]:
        """The saves of this world, newest first."""
        world = self._session.state.info.id
        return [info for info in await asyncio.to_thread(self._saves.list) if info.world == world]

    # ── one tick ─────────────────────────────────────────────────────────────────────────────────────────────

    def _tick(self) -> None:
        inputs, self._inbox = self._inbox, []
        outputs = self._session.advance(inputs)
        if self._observer is not None and inputs:
            self._observer.on_tick(inputs, outputs, self._session)
        for each in outputs.prompts:
            self._submit(each)
        num_changed = self._warm_near_players() if outputs.world.changed or self.tick == 1 else 0
        self._resolve_changes(outputs, num_changed)

    def _submit(self, each: DuePrompt) -> None:
        due, prompt = each.due, each.prompt
        self._prompts[due.request_id] = prompt
        if len(self._prompts) > _MAX_REMEMBERED_PROMPTS:
            self._prompts.popitem(last=False)
        sampling = self._speaking[due.request_id].sampling
        request = GenerationRequest(
            request_id=due.request_id,
            conversation=due.conversation,
            blocks=prompt.blocks,
            turns=prompt.turns,
            final_token_ids=prompt.final_token_ids,
            sampling=sampling,
            seed=due.seed if sampling.seed is None else sampling.seed,
            stop_ids=self._model.template.stop_ids,
        )
        self._worker.post(lambda engine: engine.submit(request))

    def _warm_near_players(self) -> int:
        """Ask for the blocks of NPCs whom a player might speak to next. Returns how many blocks are new."""
        new_blocks = set()
        for player in self.state.players():
            near = self.state.npcs_at(entity_id(Kind.PLACE, self.state.player(player).place))
            for npc in near[:_MAX_WARMED_NPCS]:
                conversation_id = ConversationId(player, npc)
                prompt = self._session.prompt(conversation_id)
                warmed = self._warmed.get(conversation_id)
                new = {block.id for block in prompt.blocks} - {b.id for b in (warmed.blocks if warmed else ())}
                if new:
                    new_blocks |= new
                    self._warm(conversation_id, prompt)
        return len(new_blocks)

    def _warm(self, conversation_id: ConversationId, prompt: Prompt) -> None:
        self._warmed[conversation_id] = prompt
        warm_up = WarmUp(prompt.blocks, prompt.turns, conversation_id)
        self._worker.post(lambda engine: engine.warm(conversation_id, warm_up))

    def _resolve_changes(self, outputs: SessionOutputs, num_changed_blocks: int) -> None:
        for refused in outputs.world.refused:
            if future := self._changes_due.pop(refused.request_id, None):
                _resolve(future, refused.error)
        for request_id, entities in outputs.world.changed_by.items():
            if future := self._changes_due.pop(request_id, None):
                _resolve(future, WorldChange(outputs.world.tick, tuple(sorted(entities)), num_changed_blocks))
        if outputs.world.changed:
            self._broadcaster.publish(
                WorldChange(outputs.world.tick, tuple(sorted(outputs.world.changed)), num_changed_blocks)
            )

    # ── what comes from the model ────────────────────────────────────────────────────────────────────────────

    def _on_outputs(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            if isinstance(output, WarmedOutput):
                if (warmed := self._warming.pop(output.key, None)) is not None:
                    warmed.set_result(None)
                continue
            speaking = self._speaking.get(output.request_id)
            if speaking is None:
                continue
            match output:
                case TokenOutput(_, token_id):
                    self._on_token(speaking, token_id)
                case FinishedOutput():
                    self._on_finished(speaking, output)
                case FailedOutput(_, error):
                    self._end(speaking, ReplyEnded(output.request_id, *self._parties(speaking), None), error)

    def _on_token(self, speaking: _Speaking, token_id: int) -> None:
        if speaking.first_token_s is None:
            speaking.first_token_s = time.monotonic()
        text = speaking.decoder.feed(token_id)
        if not speaking.speech:
            text = text.lstrip()  # a reply begins with its first word
        if not text:
            return
        speaking.speech += text
        for piece, ends_sentence in speaking.sentences.feed(text):
            speaking.stream.feed(ReplyDelta(piece, ends_sentence))

    def _on_finished(self, speaking: _Speaking, output: FinishedOutput) -> None:
        if speaking.sentences.is_open:
            speaking.stream.feed(ReplyDelta("", ends_sentence=True))
        now_s = time.monotonic()
        first_s = speaking.first_token_s if speaking.first_token_s is not None else now_s
        is_stopped = output.reason is FinishReason.STOP
        reply = Reply(
            request_id=output.request_id,
            npc=speaking.stream.npc,
            player=speaking.stream.player,
            speech=speaking.speech.rstrip(),
            emotion=None,
            actions=(),
            finish_reason=output.reason,
            stats=ReplyStats(
                ttft_ms=(first_s - speaking.said_s) * 1000,
                total_ms=(now_s - speaking.said_s) * 1000,
                num_prompt_tokens=output.counts.num_prompt,
                num_cached_tokens=output.counts.num_cached,
                num_encoded_tokens=output.counts.num_encoded,
                num_reply_tokens=len(output.sampled_token_ids) - is_stopped,
            ),
        )
        ended = ReplyEnded(
            output.request_id,
            *self._parties(speaking),
            speech=reply.speech if output.turn is not None else None,
            sampled_token_ids=output.sampled_token_ids,
            is_stopped=is_stopped,
            num_folded=output.num_folded,
        )
        if self._observer is not None:
            self._observer.on_reply(reply, output)
        self._end(speaking, ended, reply)

    def _end(self, speaking: _Speaking, ended: ReplyEnded, outcome: Reply | NpcEngineError) -> None:
        del self._speaking[ended.request_id]
        self._put(ended)
        self._ticks.wake()  # the next utterance of this conversation may be waiting
        speaking.stream.finish(outcome)

    def _on_failure(self, error: NpcEngineError) -> None:
        self._end_all(error)

    def _on_loop_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failure = NpcEngineError(f"the tick loop failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._end_all(failure)

    # ── odds and ends ────────────────────────────────────────────────────────────────────────────────────────

    def _new_prompter(self) -> Prompter:
        model = self._model
        limit = min(self.config.max_context_tokens, model.config.max_position_embeddings)
        return Prompter(
            model.identity,
            model.tokenizer,
            model.template,
            max_tokens=limit,
            max_reply_tokens=self.config.sampling.max_tokens,
            max_utterance_tokens=self.config.max_utterance_tokens,
        )

    def _conversation_id(self, npc: str, player: str) -> ConversationId:
        player_id = entity_id(Kind.PLAYER, player)
        self.state.player(player_id)  # raises UnknownNameError
        return ConversationId(player_id, self.state.find_npc(npc))

    def _parties(self, speaking: _Speaking) -> tuple[EntityId, EntityId]:
        return entity_id(Kind.PLAYER, speaking.stream.player), entity_id(Kind.CHARACTER, speaking.stream.npc)

    def _new_request_id(self) -> int:
        self._next_request_id += 1
        return self._next_request_id - 1

    async def _change(self, change: PatchWorld | PassTime) -> WorldChange:
        self._check_open()
        future: asyncio.Future[WorldChange] = asyncio.get_running_loop().create_future()
        self._changes_due[change.request_id] = future
        self._put(change)
        return await future

    def _put(self, each: Input) -> None:
        if len(self._inbox) >= _MAX_INBOX and not isinstance(each, ReplyEnded):
            raise NpcEngineError(f"more than {_MAX_INBOX} changes wait for one tick; send fewer, larger patches")
        self._inbox.append(each)

    def _cancel(self, request_id: int) -> None:
        if request_id in self._speaking and not self._is_closed:
            self._worker.post(lambda engine: engine.cancel(request_id))

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosedError("the engine is closed")

    def _end_all(self, error: NpcEngineError) -> None:
        for speaking in self._speaking.values():
            speaking.stream.finish(error)
        self._speaking.clear()
        for future in self._changes_due.values():
            _resolve(future, error)
        self._changes_due.clear()
        for warmed in self._warming.values():
            warmed.set_exception(error)
        self._warming.clear()


def _resolve(future: asyncio.Future[WorldChange], outcome: WorldChange | NpcEngineError) -> None:
    if future.done():  # whoever waited was cancelled
        return
    if isinstance(outcome, WorldChange):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
