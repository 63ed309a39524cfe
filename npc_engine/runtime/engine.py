"""The engine as a game sees it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from npc_engine.blocks import BlockDamage, CacheStats, Tier
from npc_engine.clock import Clock, MonotonicClock
from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.dialogue.conversation import ConversationId
from npc_engine.errors import BlockStoreError, EngineClosedError, NpcEngineError, SaveError, UnknownNameError
from npc_engine.inference import (
    FailedOutput,
    FinishedOutput,
    GenerationRequest,
    InferenceEngine,
    Output,
    TokenOutput,
    WarmedOutput,
)
from npc_engine.runtime.events import Broadcaster, Changes, WorldChange
from npc_engine.runtime.loading import LoadedModel, LoadProgress, create_engine, load
from npc_engine.runtime.observer import Observer
from npc_engine.runtime.prompt import Prompt
from npc_engine.runtime.reply import Reply, ReplyStream
from npc_engine.runtime.saves import SaveInfo, SaveStore
from npc_engine.runtime.session import DuePrompt, Session, SessionOutputs, create_prompter
from npc_engine.runtime.simulation import Input, PassTime, PatchWorld, ReplyEnded, Say, Simulation
from npc_engine.runtime.speaking import Speaking
from npc_engine.runtime.tick_loop import TickLoop
from npc_engine.runtime.views import BlockView, ModelInfo, NpcInfo, Preparation
from npc_engine.runtime.warming import Warmer, WarmUpDue
from npc_engine.runtime.worker import ModelWorker
from npc_engine.world import EntityId, Kind, World, WorldInfo, WorldState, entity_id, load_world, split
from npc_engine.world.entities import KEY_PATTERN

_log = logging.getLogger("npc_engine")

_MAX_INBOX = 4096
_MAX_REMEMBERED_PROMPTS = 32


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
        self._world = world
        self._observer = observer
        self._session = Session(
            Simulation(WorldState.start(world), seed=config.seed),
            create_prompter(self._model, config),
            self._model.identity.fingerprint,
        )
        self._saves = SaveStore(config.data_dir / "saves.sqlite")
        self._inbox: list[Input] = []
        self._next_request_id = 1
        self._speaking: dict[int, Speaking] = {}
        self._changes_due: dict[int, asyncio.Future[WorldChange]] = {}
        self._prompts: OrderedDict[int, Prompt] = OrderedDict()
        self._warmer = Warmer()
        self._broadcaster = Broadcaster()
        self._damage: list[BlockDamage] = []
        self._is_closed = False
        self._failure: NpcEngineError | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._ticks = TickLoop(self._tick, clock=clock or MonotonicClock(), ticks_per_s=config.ticks_per_s)
        self._worker = ModelWorker(
            lambda: create(loaded, config, self._on_damage),
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
        if self._observer is not None:
            self._observer.on_start(self._session, self._model, self.config)
        await self._worker.start()
        header = self._session.prompter.header
        self._worker.post(lambda engine: engine.pin(header))
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
    def world_info(self) -> WorldInfo:
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

        A player whom the world does not know joins it, at the place where players start. Raises
        :class:`UnknownNameError` or :class:`UtteranceError` at once.
        """
        self._check_open()
        self._session.prompter.check_utterance(text)
        conversation_id = ConversationId(self._player_id(player), self.state.find_npc(npc))
        if conversation_id.player not in self.state.players():
            self._put(PatchWorld(self._new_request_id(), (self._joining(player),)))
        request_id = self._new_request_id()
        stream = ReplyStream(request_id, split(conversation_id.npc)[1], player, lambda: self._cancel(request_id))
        self._speaking[request_id] = Speaking(
            stream, time.monotonic(), sampling or self.config.sampling, self._model.tokenizer
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
        due = self._warmer.ask_for(conversation_id, prompt, is_awaited=True)
        self._post_warm_up(due)
        await self._warmer.wait(due)
        return Preparation(
            len(prompt.blocks),
            sum(block.num_tokens for block in prompt.blocks),
            sum(block.num_tokens for block in missing),
            (time.monotonic() - started_s) * 1000,
            prompt.num_left_out,
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
        """Let game time pass, at the next tick. :class:`PatchError` for a number that time can't pass by."""
        return await self._change(PassTime(self._new_request_id(), minutes))

    # ── saving ───────────────────────────────────────────────────────────────────────────────────────────────

    async def save(self, name: str) -> SaveInfo:
        """Write a save. When this returns, it survives a crash; its blocks are on disk, too, if the disk takes them."""
        self._check_open()
        if self._inbox:
            self._tick()  # a reply that has just ended is part of the save
        snapshot = self._session.snapshot(self._next_request_id)
        info = await asyncio.to_thread(self._saves.write, name, snapshot)
        try:
            flush = await self._worker.call(lambda engine: engine.flush)
            await asyncio.to_thread(flush)  # not on the model's thread: it may be speaking
        except BlockStoreError as error:  # the save is whole: what is not on disk is encoded again after a restart
            _log.warning("%s", error)
        return info

    async def load(self, name: str) -> SaveInfo:
        """Go on from a save; what happened since is forgotten. Replies that are being spoken end as cancelled."""
        self._check_open()
        world = self._session.state.info.id
        snapshot = await asyncio.to_thread(self._saves.read, name, world)
        # Before anything ends: a save that can't be used costs nothing.
        prompter = create_prompter(self._model, self.config)
        session = Session.restore(snapshot, prompter, self._model.identity.fingerprint)
        while self._speaking:
            streams = [speaking.stream for speaking in self._speaking.values()]
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*(stream.result() for stream in streams), return_exceptions=True)
        # From here to the new session nothing is awaited: what is in the inbox belongs to the game that ends.
        self._inbox.clear()
        self._end_changes(SaveError(f"the game went on from the save {name!r} before this change took effect"))
        self._session = session
        self._next_request_id = max(self._next_request_id, snapshot.next_request_id)
        self._warmer.forget()
        self._warm_near_players()
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
        requests = [self._request(each) for each in outputs.prompts]
        if self._observer is not None and inputs:
            self._observer.on_tick(inputs, outputs, requests, self._session)
        for request in requests:
            self._submit(request)
        for failed in outputs.failed:
            speaking = self._speaking[failed.request_id]
            self._end(failed.request_id, speaking.nothing_said(), failed.error)
        num_changed_blocks = 0
        if outputs.world.changed or self.tick == 1:
            num_changed_blocks = self._warm_near_players()
        self._resolve_changes(outputs, num_changed_blocks)

    def _request(self, each: DuePrompt) -> GenerationRequest:
        due, prompt = each.due, each.prompt
        self._prompts[due.request_id] = prompt
        if len(self._prompts) > _MAX_REMEMBERED_PROMPTS:
            self._prompts.popitem(last=False)
        sampling = self._speaking[due.request_id].sampling
        return GenerationRequest(
            request_id=due.request_id,
            conversation=due.conversation,
            blocks=prompt.blocks,
            turns=prompt.turns,
            final_token_ids=prompt.final_token_ids,
            sampling=sampling,
            seed=due.seed if sampling.seed is None else sampling.seed,
            stop_ids=self._model.template.stop_ids,
        )

    def _submit(self, request: GenerationRequest) -> None:
        speaking = self._speaking[request.request_id]
        if speaking.is_cancelled:
            reply, ended = speaking.end_unheard()
            self._end(request.request_id, ended, reply)
        else:
            self._worker.post(lambda engine: engine.submit(request))

    def _warm_near_players(self) -> int:
        due, num_new_blocks = self._warmer.near_players(self._session)
        for each in due:
            self._post_warm_up(each)
        return num_new_blocks

    def _post_warm_up(self, due: WarmUpDue) -> None:
        self._worker.post(lambda engine: engine.warm(due.key, due.warm_up))

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
            match output:
                case WarmedOutput(key):
                    self._warmer.done(key)
                case TokenOutput(request_id, token_id) if request_id in self._speaking:
                    self._speaking[request_id].hear(token_id)
                case FinishedOutput(request_id) if request_id in self._speaking:
                    reply, ended = self._speaking[request_id].end(output)
                    if self._observer is not None:
                        self._observer.on_reply(reply, output)
                    self._end(request_id, ended, reply)
                case FailedOutput(request_id, error) if request_id in self._speaking:
                    self._end(request_id, self._speaking[request_id].nothing_said(), error)

    def _end(self, request_id: int, ended: ReplyEnded, outcome: Reply | NpcEngineError) -> None:
        speaking = self._speaking.pop(request_id)
        self._inbox.append(ended)
        self._ticks.wake()  # the next utterance of this conversation may be waiting
        speaking.stream.finish(outcome)

    def _on_damage(self, damage: BlockDamage) -> None:
        """On the model's thread."""
        self._damage.append(damage)
        _log.warning(
            "block %s on disk was refused (%s); it is encoded again", damage.block_id.hex()[:12], damage.reason
        )

    def _on_failure(self, error: NpcEngineError) -> None:
        self._failure = error
        self._end_all(error)

    def _on_loop_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            failure = NpcEngineError(f"the tick loop failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._on_failure(failure)

    # ── odds and ends ────────────────────────────────────────────────────────────────────────────────────────

    def _player_id(self, player: str) -> EntityId:
        if not re.fullmatch(KEY_PATTERN, player):
            raise UnknownNameError(f"player {player!r}: an id is made of up to 64 letters, digits, '_' and '-'")
        return entity_id(Kind.PLAYER, player)

    def _joining(self, player: str) -> dict[str, Any]:
        place = self._world.start.player.place
        return {"op": "add", "path": f"/players/{player}", "value": {"name": player, "place": place}}

    def _conversation_id(self, npc: str, player: str) -> ConversationId:
        player_id = entity_id(Kind.PLAYER, player)
        self.state.player(player_id)  # raises UnknownNameError
        return ConversationId(player_id, self.state.find_npc(npc))

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
        if len(self._inbox) >= _MAX_INBOX:
            raise NpcEngineError(f"more than {_MAX_INBOX} changes wait for one tick; send fewer, larger patches")
        self._inbox.append(each)

    def _cancel(self, request_id: int) -> None:
        if (speaking := self._speaking.get(request_id)) is None:
            return
        speaking.is_cancelled = True  # if it still waits for its turn, the model has not heard of it
        self._worker.post(lambda engine: engine.cancel(request_id))

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_closed:
            raise EngineClosedError("the engine is closed")

    def _end_changes(self, error: NpcEngineError) -> None:
        for future in self._changes_due.values():
            _resolve(future, error)
        self._changes_due.clear()

    def _end_all(self, error: NpcEngineError) -> None:
        for speaking in self._speaking.values():
            speaking.stream.finish(error)
        self._speaking.clear()
        self._end_changes(error)
        self._warmer.fail(error)


def _resolve(future: asyncio.Future[WorldChange], outcome: WorldChange | NpcEngineError) -> None:
    if future.done():  # whoever waited was cancelled
        return
    if isinstance(outcome, WorldChange):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
