"""The lines of a recording, as pydantic models; :mod:`npc_engine.runtime.recording` says which there are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from npc_engine.blocks import ModelIdentity
from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.inference import FinishReason
from npc_engine.runtime.prompt import Prompt
from npc_engine.runtime.simulation import Input, PassTime, PatchWorld, ReplyEnded, Say
from npc_engine.world import EntityId

FORMAT_VERSION: Final = 1

Count = Annotated[int, Field(ge=0)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
HexId = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
WorldKey = Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")]  # becomes part of a path


class _Part(BaseModel):
    """Base of everything in a line: no unknown field, no silent conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# ── header ───────────────────────────────────────────────────────────────────────────────────────────────────────


class RecordedWorld(_Part):
    """The name of the world's folder, and the digest of the state that a new game starts in."""

    name: WorldKey
    digest: HexId


class RecordedModel(_Part):
    """The model that spoke. All but `name` and `architecture` go into its blocks' ids."""

    name: str
    architecture: str
    fingerprint: str
    adapter: str | None
    dtype: str
    rope: str

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(self.fingerprint, self.adapter, self.dtype, self.rope)


class RecordedSampling(_Part):
    """:class:`~npc_engine.config.SamplingParams`, every field written out."""

    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: Annotated[float, Field(gt=0)]
    max_tokens: Annotated[int, Field(ge=1)]
    seed: int | None

    @classmethod
    def of(cls, params: SamplingParams) -> Self:
        return cls(**asdict(params))

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(**self.model_dump())


class Header(_Part):
    """The first line. `names` are those of characters and players at the start, for people who read along."""

    kind: Literal["header"] = "header"
    format: int
    engine: str
    created: str
    world: RecordedWorld
    model: RecordedModel
    seed: int
    max_context_tokens: Annotated[int, Field(ge=1)]
    max_utterance_tokens: Annotated[int, Field(ge=1)]
    sampling: RecordedSampling
    names: dict[str, str]

    def apply_to(self, config: EngineConfig) -> EngineConfig:
        """`config` with the settings that layouts depend on as they were."""
        fields = {name: getattr(config, name) for name in EngineConfig.__dataclass_fields__}
        fields |= {
            "seed": self.seed,
            "max_context_tokens": self.max_context_tokens,
            "max_utterance_tokens": self.max_utterance_tokens,
            "sampling": self.sampling.params,
        }
        return EngineConfig(**fields)


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────


class RecordedPatch(_Part):
    kind: Literal["patch"] = "patch"
    request_id: int
    operations: tuple[dict[str, JsonValue], ...]

    def to_input(self) -> Input:
        return PatchWorld(self.request_id, self.operations)


class RecordedPassTime(_Part):
    kind: Literal["pass_time"] = "pass_time"
    request_id: int
    minutes: Count

    def to_input(self) -> Input:
        return PassTime(self.request_id, self.minutes)


class RecordedSay(_Part):
    kind: Literal["say"] = "say"
    request_id: int
    player: EntityId
    npc: EntityId
    text: str

    def to_input(self) -> Input:
        return Say(self.request_id, self.player, self.npc, self.text)


class RecordedReplyEnded(_Part):
    kind: Literal["reply_ended"] = "reply_ended"
    request_id: int
    player: EntityId
    npc: EntityId
    speech: str | None
    sampled_token_ids: tuple[TokenId, ...]
    is_stopped: bool
    num_folded: Count

    def to_input(self) -> ReplyEnded:
        return ReplyEnded(
            self.request_id,
            self.player,
            self.npc,
            self.speech,
            self.sampled_token_ids,
            self.is_stopped,
            self.num_folded,
        )


RecordedInput = Annotated[
    RecordedPatch | RecordedPassTime | RecordedSay | RecordedReplyEnded, Field(discriminator="kind")
]

# ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────


class RecordedBlock(_Part):
    """One block of a prompt; `entity` owns it, `section` is the field it was rendered from."""

    entity: str
    section: str
    id: HexId
    num_tokens: Annotated[int, Field(ge=1)]

    @property
    def owner(self) -> tuple[str, str]:
        return self.entity, self.section


class RecordedPrompt(_Part):
    """What a reply started from: the blocks in their order, the conversation's turns last, and the final block."""

    request_id: int
    player: EntityId
    npc: EntityId
    blocks: tuple[RecordedBlock, ...]
    final_token_ids: tuple[TokenId, ...]
    seed: int
    sampling: RecordedSampling


class Tick(_Part):
    """A tick that had inputs. `at_ms` counts from the start; `digest` is that of world and conversations after it.

    `refused` are the requests among the inputs that did not apply.
    """

    kind: Literal["tick"] = "tick"
    at_ms: float
    tick: Annotated[int, Field(ge=1)]
    inputs: tuple[RecordedInput, ...]
    changed: tuple[EntityId, ...]
    refused: tuple[int, ...]
    digest: HexId
    prompts: tuple[RecordedPrompt, ...]


class RecordedReply(_Part):
    """A reply that has ended at `at_ms`. `turn_id` is its exchange's block, None if nothing was computed."""

    kind: Literal["reply"] = "reply"
    at_ms: float
    request_id: int
    player: str
    npc: str
    speech: str
    finish_reason: FinishReason
    sampled_token_ids: tuple[TokenId, ...]
    num_folded: Count
    turn_id: HexId | None
    num_prompt_tokens: Count
    num_cached_tokens: Count
    num_encoded_tokens: Count
    num_reply_tokens: Count
    ttft_ms: float
    total_ms: float


class End(_Part):
    """The recording ended on purpose."""

    kind: Literal["end"] = "end"
    at_ms: float
    tick: int
    reason: str


Line = Annotated[Header | Tick | RecordedReply | End, Field(discriminator="kind")]
LINE: Final[TypeAdapter[Header | Tick | RecordedReply | End]] = TypeAdapter(Line)


def prompt_blocks(npc: str, prompt: Prompt) -> tuple[RecordedBlock, ...]:
    """The blocks of a prompt with their owners; the header belongs to the engine, a turn to its NPC."""
    owners = [("engine", "header")]
    owners += [(owned.text.entity, owned.text.section) for owned in prompt.owned]
    owners += [(npc, f"turn/{i + 1}") for i in range(len(prompt.turns))]
    blocks = (*prompt.blocks, *prompt.turns)
    return tuple(
        RecordedBlock(entity=entity, section=section, id=block.id.hex(), num_tokens=block.num_tokens)
        for (entity, section), block in zip(owners, blocks, strict=True)
    )
