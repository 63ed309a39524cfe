"""The tuning loop: LoRA or all weights, both modes of every sample, one GPU, several, or a CPU."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from npc_engine.errors import TuningError
from npc_engine.inference import ChatTemplate, Checkpoint, Tokenizer
from npc_engine.inference.model_config import ModelConfig
from npc_engine.inference.rope import inverse_frequencies
from npc_engine.tuning import block_attention
from npc_engine.tuning.data import BatchStream, Line, Variation, pairs_of
from npc_engine.tuning.fast_layers import use_fast_layers
from npc_engine.tuning.objective import Losses, TargetLogits, losses
from npc_engine.tuning.rows import Batch, both_modes, pack
from npc_engine.tuning.run_log import Report, RunLog
from npc_engine.tuning.samples import Sample
from npc_engine.tuning.segments import EpisodeBuilder

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    """Settings of a run.

    `lora_rank` 0 trains all weights. With `minutes` a run takes that long and the learning rate follows the clock; then
    `num_steps` is the most that it takes. A step sees ``lines_per_batch * accumulation`` lines per process. `kl_weight`
    weighs KL(full ‖ blocks), `retrieval_weight` the loss that says where answers stand. `precision` is ``bf16``,
    ``fp16`` or ``no``.
    """

    output: Path
    lora_rank: int = 64
    lora_alpha: int = 128
    lora_dropout: float = 0.0
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    num_steps: int = 1000
    minutes: float | None = None
    warmup_share: float = 0.03
    lines_per_batch: int = 12
    accumulation: int = 1
    row_tokens: int = 2048
    kl_weight: float = 1.0
    retrieval_weight: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "no"
    seed: int = 0
    variation: Variation | None = field(default_factory=Variation)
    num_workers: int = 0
    evaluate_every: int = 100
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("num_steps", "lines_per_batch", "accumulation", "row_tokens", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise TuningError(f"{name}: {getattr(self, name)} is out of range; it must be at least 1")
        if self.lora_rank < 0 or not 0 < self.learning_rate < 1:
            raise TuningError("lora_rank must be at least 0, and learning_rate between 0 and 1")


class Trainer:
    """Tunes one checkpoint. :meth:`run` starts, or resumes what an earlier run left in the output folder."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        lines: Sequence[Line],
        development: Sequence[Line],
        config: TuningConfig,
        on_report: Callable[[Report], None] = lambda report: None,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self._on_report, self._on_step = on_report, on_step
        self._step = 0
        self._elapsed_s = 0.0
        self._since_s = time.monotonic()
        if config.precision not in ("no", "bf16", "fp16"):
            raise TuningError(f"--precision: {config.precision!r} is unknown; it is no, bf16 or fp16")
        self._accelerator = Accelerator(mixed_precision=config.precision)
        torch.manual_seed(config.seed)
        tokenizer = Tokenizer(checkpoint.folder)
        builder = EpisodeBuilder(tokenizer, ChatTemplate.load(checkpoint.folder, tokenizer))
        self._lines = [line for line in lines if isinstance(line, Sample) or line.turns[0].reply]
        if not self._lines:
            raise TuningError("--data: there is no reply to learn; give files of samples, or scenes with replies")
        self._builder = builder
        self._development = [both_modes([row]) for row in pack(pairs_of(development, builder), config.row_tokens)]
        self.language_model = self._load()
        use_fast_layers(self.language_model)
        model = TargetLogits(self.language_model, _inv_freq(checkpoint), watches_retrieval=config.retrieval_weight > 0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self._model, self._optimizer = self._accelerator.prepare(model, optimizer)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        self._log = RunLog(config.output) if self.is_main else None

    @property
    def is_main(self) -> bool:
        """True in the one process that writes and speaks."""
        return bool(self._accelerator.is_main_process)

    def run(self) -> None:
        """Train to the last step. Raises :class:`TuningError` where memory does not suffice."""
        try:
            self._run()
        except torch.OutOfMemoryError as error:
            raise TuningError(
                f"step {self._step + 1} does not fit into the GPU's memory; halve --batch or --row-tokens and double "
                "--accumulation. What was saved last is resumed by the same command"
            ) from error

    def _run(self) -> None:
        config, accelerator = self.config, self._accelerator
        self._resume()
        if self._log is not None:
            self._log.forget_after(self._step)
        batches = iter(self._loader())
        meter = _Meter(accelerator.device)
        self._model.train()
        self._since_s = time.monotonic() - self._elapsed_s
        while self.share_done < 1:
            for _ in range(config.accumulation):
                batch = next(batches).to(accelerator.device)
                meter.add(self._learn(batch), batch.token_ids.numel() * accelerator.num_processes)
            self._step += 1
            self._look_at_the_clock()
            self._update()
            is_last = self.share_done == 1
            if self._step % config.evaluate_every == 0 or is_last:
                self._report(meter)
            if self._step % config.save_every == 0 or is_last:
                self._save()
            self._on_step(self._step)

    @torch.no_grad()
    def evaluate(self) -> Losses | None:
        """Mean losses over the development samples as they are, or None if there are none."""
        if not self._development:
            return None
        self._model.eval()
        sums, num_targets = torch.zeros(len(Losses._fields)), 0
        for batch in self._development:
            on_device = batch.to(self._accelerator.device)
            weight = len(batch.target_ids) // 2
            sums += weight * torch.stack(losses(self._model(on_device), on_device)).float().cpu()
            num_targets += weight
        self._model.train()
        return Losses(*(sums / num_targets))

    def _learn(self, batch: Batch) -> Losses:
        result = losses(self._model(batch), batch)
        self._accelerator.backward(
            result.total(self.config.kl_weight, self.config.retrieval_weight) / self.config.accumulation
        )
        return Losses(*(each.detach() for each in result))

    def _update(self) -> None:
        self._accelerator.clip_grad_norm_(self._model.parameters(), self.config.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()

    def _share_of_rate(self, _: int) -> float:
        """A linear warm-up, then half a cosine."""
        config = self.config
        done = max(self.share_done, 1 / config.num_steps)
        if done < config.warmup_share:
            return done / config.warmup_share
        progress = (done - config.warmup_share) / (1 - config.warmup_share)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    @property
    def share_done(self) -> float:
        """How much of the run lies behind: 0 to 1."""
        config = self.config
        of_time = self._elapsed_s / (60 * config.minutes) if config.minutes is not None else 0.0
        return min(1.0, max(self._step / config.num_steps, of_time))

    def _look_at_the_clock(self) -> None:
        """All processes go by the first one's, or they would stop at different steps."""
        elapsed = torch.tensor(time.monotonic() - self._since_s, device=self._accelerator.device)
        if self.config.minutes is not None:
            elapsed = broadcast(elapsed)
        self._elapsed_s = float(elapsed)

    def _loader(self) -> DataLoader[Batch]:
        config, accelerator = self.config, self._accelerator
        num_done, num_processes = self._step * config.accumulation, accelerator.num_processes
        stream = BatchStream(
            self._lines,
            self._builder,
            lines_per_batch=config.lines_per_batch,
            row_tokens=config.row_tokens,
            seed=config.seed,
            variation=config.variation,
            first=num_done * num_processes + accelerator.process_index,
            stride=num_processes,
            num_batches=config.num_steps * config.accumulation - num_done,
        )
        return DataLoader(stream, batch_size=None, num_workers=config.num_workers)

    def _load(self) -> nn.Module:
        config = self.config
        disable_progress_bar()  # type: ignore[no-untyped-call]  # there is one for the run
        # Frozen weights need no more precision than the arithmetic has; trained ones do.
        dtype = torch.bfloat16 if config.lora_rank and config.precision == "bf16" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(
            self.checkpoint.folder, dtype=dtype, attn_implementation=block_attention.NAME
        )
        if not config.lora_rank:
            return model
        return get_peft_model(
            model,
            LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=list(PROJECTIONS),
                task_type="CAUSAL_LM",
            ),
        )

    def _report(self, meter: _Meter) -> None:
        means, tokens_per_s = meter.take()
        development = self.evaluate()
        report = Report(
            step=self._step,
            loss_full=float(means.full),
            loss_blocks=float(means.blocks),
            kl=float(means.kl),
            retrieval=float(means.retrieval),
            learning_rate=float(self._schedule.get_last_lr()[0]),
            tokens_per_s=tokens_per_s,
            dev_full=float(development.full) if development else None,
            dev_blocks=float(development.blocks) if development else None,
            dev_kl=float(development.kl) if development else None,
            dev_retrieval=float(development.retrieval) if development else None,
        )
        if self._log is not None:
            self._log.write(report)
            self._on_report(report)

    @property
    def _state_path(self) -> Path:
        return self.config.output / "state.pt"

    def _save(self) -> None:
        """What a resumed run needs, complete or not at all."""
        if not self.is_main:
            return
        trained = {name: p for name, p in self.language_model.named_parameters() if p.requires_grad}
        unfinished = self._state_path.with_suffix(".tmp")
        state = {
            "step": self._step,
            "elapsed_s": self._elapsed_s,
            "trained": trained,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        torch.save(state, unfinished)
        unfinished.replace(self._state_path)

    def _resume(self) -> None:
        if not self._state_path.exists():
            return
        try:
            state = torch.load(self._state_path, map_location=self._accelerator.device, weights_only=True)
            parameters = dict(self.language_model.named_parameters())
            with torch.no_grad():
                for name, tensor in state["trained"].items():
                    parameters[name].copy_(tensor)
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self._step, self._elapsed_s = state["step"], state["elapsed_s"]
        except (KeyError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TuningError(
                f"{self._state_path}: is damaged, or belongs to a run with other settings; "
                "give another --output, or remove it"
            ) from error


class _Meter:
    """Sums of losses on the device, so that nobody waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(Losses._fields), device=device)
        self._num_batches = 0
        self._num_tokens = 0
        self._since_s = time.perf_counter()

    def add(self, batch_losses: Losses, num_tokens: int) -> None:
        self._sums += torch.stack(batch_losses)
        self._num_batches += 1
        self._num_tokens += num_tokens

    def take(self) -> tuple[Losses, float]:
        """Mean losses and tokens per second since the last time."""
        means = Losses(*(self._sums / max(1, self._num_batches)))
        speed = self._num_tokens / (time.perf_counter() - self._since_s)
        self._sums.zero_()
        self._num_batches = self._num_tokens = 0
        self._since_s = time.perf_counter()
        return means, speed


def _inv_freq(checkpoint: Checkpoint) -> Tensor:
    config = ModelConfig.from_dict(checkpoint.config, str(checkpoint.folder / "config.json"))
    return inverse_frequencies(config.rope, config.head_dim)
