"""Scenes played through the inference engine: one conversation each, all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from npc_engine.config import EngineConfig, SamplingParams
from npc_engine.inference import (
    FailedOutput,
    FinishedOutput,
    FinishReason,
    GenerationRequest,
    InferenceEngine,
    Model,
    Output,
    TokenOutput,
    WarmUp,
    open_memory,
)
from npc_engine.runtime.prompt import Prompt, Prompter, Transcript
from npc_engine.tuning.quality.modes import Mode
from npc_engine.tuning.scene_prompt import scene_blocks
from npc_engine.tuning.scenes import Scene


class Key(NamedTuple):
    """A conversation: what it is held for, and the number of its scene."""

    purpose: str
    scene: int


@dataclass(slots=True)
class _Talk:
    """One scene's conversation as it goes on."""

    scene: Scene
    transcript: Transcript = field(default_factory=Transcript)
    prompt: Prompt | None = None
    spoken: tuple[int, ...] = ()
    logits: Tensor | None = None

    def hear(self, output: FinishedOutput) -> None:
        """A reply has ended: it belongs to the transcript."""
        assert output.turn is not None
        is_stopped = output.reason is FinishReason.STOP
        kept = self.transcript.turns[: len(self.transcript.turns) - output.num_folded]
        self.transcript = Transcript((*kept, output.turn), output.pending_token_ids)
        self.spoken = output.sampled_token_ids[: len(output.sampled_token_ids) - is_stopped]
        self.logits = output.forced_logits


class Stage:
    """Plays scenes in one mode. Blocks live in memory alone."""

    def __init__(self, model: Model, mode: Mode, config: EngineConfig) -> None:
        self.mode = mode
        self._model = model
        self._sampling = replace(config.sampling, seed=None)
        cache, kind = open_memory(
            model,
            config.attention,
            max_block_memory=config.max_block_memory,
            max_context_memory=config.max_context_memory,
            store=None,
            policy=mode.policy,
        )
        self._engine = InferenceEngine(
            model, cache, max_context_memory=config.max_context_memory, policy=mode.policy, kind=kind
        )
        self._prompter = Prompter(
            model.identity,
            model.tokenizer,
            model.template,
            max_tokens=min(config.max_context_tokens, model.config.max_position_embeddings),
            max_reply_tokens=self._sampling.max_tokens,
            max_utterance_tokens=config.max_utterance_tokens,
            linking=mode.linking,
        )
        self._next_id = 0

    def close(self) -> None:
        self._engine.close()

    def replies(self, scenes: Sequence[Scene], on_turns: Callable[[int], None] = lambda n: None) -> list[list[str]]:
        """What the model says to every turn of every scene, its own replies as history."""
        replies: list[list[str]] = [[] for _ in scenes]
        for talks, _ in self._rounds(scenes, "talk"):
            self._answer(talks, {})
            for key, talk in talks.items():
                replies[key.scene].append(self._model.tokenizer.decode(talk.spoken).strip())
            on_turns(len(talks))
        return replies

    def reference_logits(self, scenes: Sequence[Scene]) -> list[tuple[Tensor, Tensor]]:
        """For every turn of every scene: logits [tokens, vocab] of its reference reply, and the reply's token ids.

        Reference replies are the history, too, so that all modes judge the same tokens. A scene ends at its first turn
        without one.
        """
        scored: list[list[tuple[Tensor, Tensor]]] = [[] for _ in scenes]
        for talks, turn in self._rounds([_referenced(scene) for scene in scenes], "reference"):
            forced = {
                key: (*self._model.tokenizer.encode_text(talk.scene.turns[turn].reply), self._model.template.stop_id)
                for key, talk in talks.items()
            }
            self._answer(talks, forced)
            for key, talk in talks.items():
                assert talk.logits is not None
                scored[key.scene].append((talk.logits, torch.tensor(forced[key], device=talk.logits.device)))
                talk.logits = None
        return [pair for scene in scored for pair in scene]

    def ttfts_ms(self, scenes: Sequence[Scene], *, is_full: bool) -> list[float]:
        """Time from the first utterance of each scene to its first token, one after the other.

        Everything in front of the final block is ready; with full attention nothing is, as without blocks.
        """
        times = []
        for number, scene in enumerate(scenes):
            prompt = self._prompter.assemble(scene_blocks(scene, 0), Transcript(), scene.turns[0].player)
            key = Key("ttft", number)
            if not is_full:
                self._warm({key: prompt})
            start_s = time.perf_counter()
            if is_full:
                self._engine.full_prefill(prompt.token_ids)
            else:
                self._submit(key, prompt, replace(self._sampling, max_tokens=1), forced=())
                while not any(isinstance(output, TokenOutput | FinishedOutput) for output in self._engine.step()):
                    pass
            times.append((time.perf_counter() - start_s) * 1000)
            self._run()
        return times

    def _rounds(self, scenes: Sequence[Scene], name: str) -> Iterator[tuple[dict[Key, _Talk], int]]:
        """Turn by turn, the talks that have such a turn, their prompts ready and placed."""
        talks = {Key(name, number): _Talk(scene) for number, scene in enumerate(scenes)}
        for turn in range(max(len(scene.turns) for scene in scenes)):
            present = {key: talk for key, talk in talks.items() if turn < len(talk.scene.turns)}
            for talk in present.values():
                texts = scene_blocks(talk.scene, turn)
                talk.prompt = self._prompter.assemble(texts, talk.transcript, talk.scene.turns[turn].player)
            self._warm({key: talk.prompt for key, talk in present.items() if talk.prompt is not None})
            yield present, turn

    def _warm(self, prompts: Mapping[Key, Prompt]) -> None:
        """What the engine does in idle time, to its end."""
        for key, prompt in prompts.items():
            self._engine.warm(key, WarmUp(prompt.blocks, prompt.turns, key, is_awaited=True))
        self._run()

    def _answer(self, talks: Mapping[Key, _Talk], forced: Mapping[Key, tuple[int, ...]]) -> None:
        """One reply each, all at once; `forced` replies are fed back."""
        talk_of = {}
        for key, talk in talks.items():
            assert talk.prompt is not None
            request_id = self._submit(key, talk.prompt, self._sampling, forced.get(key, ()))
            talk_of[request_id] = talk
        for output in self._run():
            if isinstance(output, FailedOutput):
                raise output.error
            if isinstance(output, FinishedOutput):
                talk_of[output.request_id].hear(output)

    def _submit(self, key: Key, prompt: Prompt, sampling: SamplingParams, forced: tuple[int, ...]) -> int:
        self._next_id += 1
        self._engine.submit(
            GenerationRequest(
                request_id=self._next_id,
                conversation=key,
                blocks=prompt.blocks,
                turns=prompt.turns,
                final_token_ids=prompt.final_token_ids,
                sampling=sampling,
                seed=0,
                stop_ids=self._model.template.stop_ids,
                forced_token_ids=forced,
            )
        )
        return self._next_id

    def _run(self) -> list[Output]:
        outputs: list[Output] = []
        while self._engine.has_work:
            outputs += self._engine.step()
        return outputs


def _referenced(scene: Scene) -> Scene:
    """The scene up to its first turn without a reference reply."""
    num_turns = next((i for i, turn in enumerate(scene.turns) if not turn.reply), len(scene.turns))
    return scene.model_copy(update={"turns": scene.turns[:num_turns]})
