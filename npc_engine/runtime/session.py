"""One running game down to its token ids: the simulation, and the prompts that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from npc_engine.blocks import BlockId
from npc_engine.config import EngineConfig
from npc_engine.dialogue.conversation import ConversationId
from npc_engine.errors import NpcEngineError
from npc_engine.inference import Model
from npc_engine.runtime.fidelity import Fidelity
from npc_engine.runtime.prompt import Prompt, Prompter, Transcript
from npc_engine.runtime.saves import EntityBlock, Snapshot
from npc_engine.runtime.simulation import Input, Outputs, ReplyDue, ReplyEnded, Simulation
from npc_engine.world import EntityId, WorldState


@dataclass(frozen=True, slots=True)
class DuePrompt:
    """A reply that is due, and the prompt it starts from."""

    due: ReplyDue
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class FailedPrompt:
    """A reply that is due, but has no prompt: the NPC is gone, or what must be in its prompt exceeds the budget."""

    request_id: int
    error: NpcEngineError


@dataclass(frozen=True, slots=True)
class SessionOutputs:
    """What came of one tick. A failed prompt still needs its ``ReplyEnded``."""

    world: Outputs
    prompts: tuple[DuePrompt, ...]
    failed: tuple[FailedPrompt, ...] = ()


def create_prompter(model: Model, config: EngineConfig) -> Prompter:
    """The prompter of a model within the limits of `config`."""
    return Prompter(
        model.identity,
        model.tokenizer,
        model.template,
        max_tokens=min(config.max_context_tokens, model.config.max_position_embeddings),
        max_reply_tokens=config.sampling.max_tokens,
        max_utterance_tokens=config.max_utterance_tokens,
        linking=Fidelity.of(config.fidelity, is_tuned=model.identity.adapter is not None).linking,
    )


class Session:
    """Deterministic like the simulation inside it: the same inputs give the same block ids on any machine.

    Does no input or output and computes no keys; whoever owns it hands its prompts to a model and its replies back as
    inputs.
    """

    def __init__(self, simulation: Simulation, prompter: Prompter, fingerprint: str) -> None:
        self.simulation = simulation
        self.prompter = prompter
        self._fingerprint = fingerprint
        self._transcripts: dict[ConversationId, Transcript] = {}
        self._due: dict[int, DuePrompt] = {}

    @property
    def state(self) -> WorldState:
        return self.simulation.state

    def advance(self, inputs: Iterable[Input]) -> SessionOutputs:
        """One tick."""
        inputs = list(inputs)
        for each in inputs:
            if isinstance(each, ReplyEnded):
                self._end(each)
        outputs = self.simulation.advance(self.simulation.tick + 1, inputs)
        prompts: list[DuePrompt] = []
        failed: list[FailedPrompt] = []
        for due in outputs.replies:
            try:
                prompts.append(DuePrompt(due, self._prompt(due)))
            except NpcEngineError as error:
                failed.append(FailedPrompt(due.request_id, error))
        self._due |= {each.due.request_id: each for each in prompts}
        return SessionOutputs(outputs, tuple(prompts), tuple(failed))

    def prompt(self, conversation_id: ConversationId) -> Prompt:
        """What an NPC's prompt for a player is made of now, without a final block."""
        return self.prompter.prompt(self.state, conversation_id, self.transcript(conversation_id))

    def transcript(self, conversation_id: ConversationId) -> Transcript:
        """A conversation as tokens; an empty one if nobody has spoken."""
        return self._transcripts.get(conversation_id, Transcript())

    def snapshot(self, next_request_id: int) -> Snapshot:
        """Everything to save. A reply that is being spoken is not part of it."""
        return Snapshot(
            world=self.state.info.id,
            tick=self.simulation.tick,
            seed=self.simulation.seed,
            next_request_id=next_request_id,
            fingerprint=self._fingerprint,
            state=self.state.to_json(),
            conversations={key: talk.without_waiting() for key, talk in self.simulation.conversations.items()},
            transcripts=dict(self._transcripts),
            entity_blocks=tuple(self._entity_blocks()),
        )

    @classmethod
    def restore(cls, snapshot: Snapshot, prompter: Prompter, fingerprint: str) -> Session:
        """The session of a save. From now on both behave identically."""
        simulation = Simulation(
            WorldState.from_json(snapshot.state),
            seed=snapshot.seed,
            tick=snapshot.tick,
            conversations=snapshot.conversations,
        )
        session = cls(simulation, prompter, fingerprint)
        if snapshot.fingerprint == fingerprint:
            session._transcripts = dict(snapshot.transcripts)
        else:
            session._transcripts = {key: prompter.retokenize(talk) for key, talk in snapshot.conversations.items()}
        return session

    def _prompt(self, due: ReplyDue) -> Prompt:
        return self.prompter.prompt(self.state, due.conversation, self.transcript(due.conversation), due.text)

    def _end(self, ended: ReplyEnded) -> None:
        due = self._due.pop(ended.request_id, None)
        if due is None or ended.speech is None:
            return
        turn = self.prompter.turn(due.prompt, ended.sampled_token_ids, ended.num_folded)
        turns = self.transcript(due.due.conversation).turns
        # The token that ended a reply early was spoken but never computed; a stop token is written by the template.
        pending = () if ended.is_stopped else ended.sampled_token_ids[-1:]
        self._transcripts[due.due.conversation] = Transcript(
            (*turns[: len(turns) - ended.num_folded], turn), tuple(pending)
        )

    def _entity_blocks(self) -> Iterator[EntityBlock]:
        """The blocks of every NPC for every player, each entity's section once."""
        seen: dict[tuple[EntityId, str], BlockId] = {}
        for player in self.state.players():
            for npc in self.state.npcs():
                try:
                    prompt = self.prompt(ConversationId(player, npc))
                except NpcEngineError:
                    continue  # an NPC that can't speak owns no blocks
                for owned in prompt.owned:
                    seen[owned.text.entity, owned.text.section] = owned.block.id
        for (entity, section), block_id in seen.items():
            yield EntityBlock(entity, section, block_id)
