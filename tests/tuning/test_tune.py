"""Tuning a tiny model: the gap between the modes closes, a stopped run goes on, the result is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from npc_engine.cli.main import app
from npc_engine.errors import ModelError, SampleError, TuningError
from npc_engine.inference import Adapter, Checkpoint, load_model, resolve
from npc_engine.inference.adapter import find_adapter
from npc_engine.tuning.output import save_result
from npc_engine.tuning.run_log import Report, read_reports
from npc_engine.tuning.samples import Sample, SampleTurn, read_lines
from npc_engine.tuning.trainer import Trainer, TuningConfig
from tests.inference.builders import tiny_checkpoint

NAMES = ("Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal")
THINGS = ("ale", "rope", "salt", "figs", "wool", "ink", "tin", "oats")


def samples() -> list[Sample]:
    """Three sellers and what each of them sells; the question names one."""
    made = []
    for i in range(len(NAMES)):
        sellers = [(NAMES[(i + j) % 8], THINGS[(3 * i + 5 * j) % 8]) for j in range(3)]
        blocks = tuple(f"{name} sells {thing}.\n" for name, thing in sellers)
        made += [Sample((SampleTurn(f"What has {name}?", f"{thing}.", blocks),), 1) for name, thing in sellers]
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return resolve(str(tiny_checkpoint(tmp_path, "smollm", max_position_embeddings=1024)), tmp_path)


def config(tmp_path: Path, **changes: object) -> TuningConfig:
    defaults = TuningConfig(
        output=tmp_path / "run",
        num_steps=24,
        lines_per_batch=8,
        row_tokens=1024,
        learning_rate=5e-3,
        lora_rank=8,
        evaluate_every=6,
        save_every=12,
        kl_weight=1.0,
    )
    return replace(defaults, **changes)  # type: ignore[arg-type]


def test_the_gap_between_the_modes_closes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Both losses fall, and blocks come closer to full attention than they were."""
    reports: list[Report] = []
    trainer = Trainer(checkpoint, samples(), samples(), config(tmp_path, lora_rank=0), on_report=reports.append)
    before = trainer.evaluate()
    trainer.run()
    after = reports[-1]
    assert before is not None
    assert after.dev_blocks is not None
    assert after.dev_kl is not None
    assert after.dev_blocks < 0.5 * float(before.blocks)
    assert after.dev_kl < 0.5 * float(before.kl)
    assert read_reports(tmp_path / "run") == [
        replace(report, **{name: pytest.approx(getattr(report, name)) for name in ("loss_full",)}) for report in reports
    ]


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The same losses in the last report, within rounding."""

    class StoppedError(Exception):
        pass

    def stop(step: int) -> None:
        if step == 19:  # it has reported step 18, and saved step 12
            raise StoppedError

    whole: list[Report] = []
    Trainer(checkpoint, samples(), [], config(tmp_path, output=tmp_path / "whole"), on_report=whole.append).run()
    with pytest.raises(StoppedError):
        Trainer(checkpoint, samples(), [], config(tmp_path), on_step=stop).run()
    resumed: list[Report] = []
    Trainer(checkpoint, samples(), [], config(tmp_path), on_report=resumed.append).run()
    assert [report.step for report in resumed] == [18, 24]
    assert [report.step for report in read_reports(tmp_path / "run")] == [6, 12, 18, 24]
    assert resumed[-1].loss_blocks == pytest.approx(whole[-1].loss_blocks, rel=1e-4)


def test_a_run_does_not_go_on_from_another_models_state(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One line that names the file and the remedy."""
    Trainer(checkpoint, samples(), [], config(tmp_path, num_steps=1)).run()
    with pytest.raises(
        TuningError, match=r"state\.pt: is damaged, or belongs to a run with other settings; give another"
    ):
        Trainer(checkpoint, samples(), [], config(tmp_path, num_steps=2, lora_rank=4)).run()


@pytest.mark.parametrize("int8", [False, True])
def test_an_adapter_is_merged_and_changes_block_ids(checkpoint: Checkpoint, tmp_path: Path, int8: bool) -> None:
    """peft's own merge gives the same weights, int8 within its rounding; the identity names the adapter."""
    trainer = Trainer(checkpoint, samples(), [], config(tmp_path, num_steps=5))
    trainer.run()
    folder = save_result(trainer.language_model, checkpoint, tmp_path / "adapter", int8=int8)
    adapter = Adapter.open(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    merged = trainer.language_model.merge_and_unload().get_parameter(name)  # type: ignore[operator, union-attr]
    base = load_model(checkpoint, device="cpu", dtype="float32")
    tuned = load_model(checkpoint, device="cpu", dtype="float32", adapter=adapter)
    from safetensors import safe_open

    with safe_open(checkpoint.weight_files[0], framework="pt") as file:
        stored = file.get_tensor(name)
    change = adapter.merged(name, stored) - stored
    assert change.abs().max() > 0
    assert torch.allclose(
        adapter.merged(name, stored), merged, atol=(0.02 if int8 else 1e-3) * float(change.abs().max())
    )
    assert tuned.identity.adapter == adapter.fingerprint
    assert tuned.identity.digest() != base.identity.digest()


def test_mistakes_in_adapters_are_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The file or option, and what to do."""
    with pytest.raises(ModelError, match=r"--adapter .*: no such folder; give an adapter's folder, default or none"):
        find_adapter(str(tmp_path / "none"), "x")
    assert find_adapter("default", "a-model-without-one") is None
    trainer = Trainer(checkpoint, samples(), [], config(tmp_path, num_steps=1))
    folder = save_result(trainer.language_model, checkpoint, tmp_path / "adapter", int8=True)
    other = resolve(str(tiny_checkpoint(tmp_path / "other", "llama", hidden_size=32)), tmp_path)
    with pytest.raises(ModelError, match=r"use the adapter of this model, or --adapter none"):
        load_model(other, device="cpu", dtype="float32", adapter=Adapter.open(folder))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(ModelError, match=r"adapter_config\.json: use_dora is not supported"):
        Adapter.open(folder)


def test_the_command_makes_an_adapter_and_its_card(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """``npc-engine tune`` from a file of samples, chat messages and a scene."""
    data = tmp_path / "data.jsonl"
    chat = {"messages": [{"role": r, "content": c} for r, c in (("system", "A."), ("user", "B?"), ("assistant", "C."))]}
    scene = (Path(__file__).parents[2] / "data/scenes/training/z.jsonl").read_text().splitlines()[0]
    data.write_text("\n".join((json.dumps({"blocks": ["A."], "final": "B?", "reply": "C."}), json.dumps(chat), scene)))
    arguments = ["tune", "--data", str(data), "--output", str(tmp_path / "out"), "--model", str(checkpoint.folder)]
    options = ["--steps", "2", "--batch", "3", "--rank", "2", "--generated", "1", "--evaluate-every", "1", "--json"]
    result = CliRunner().invoke(app, arguments + options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["step"] == 2
    card = (tmp_path / "out/result/README.md").read_text()
    assert "LoRA adapter, rank 2" in card
    assert "data.jsonl and 1 generated scenes" in card
    Adapter.open(tmp_path / "out/result")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", ":1: .*a line is"),
        ("[]", ":1: not a JSON object"),
        ('{"blocks": "a", "final": "b", "reply": "c"}', ":1: blocks: a list is expected"),
        ('{"blocks": [], "final": "", "reply": "c"}', ":1: final: a text is expected"),
        ('{"blocks": [], "final": "b", "reply": "c", "x": 1}', ":1: unknown field 'x'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', ":1: messages: no answer to learn"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', ":1: messages: .*user and assistant alternate"),
        ('{"character": {}}', ":1: "),
        ("", "holds no sample"),
    ],
)
def test_a_mistake_in_the_data_is_one_line(tmp_path: Path, line: str, expected: str) -> None:
    """File, line, field, and what a line should be."""
    path = tmp_path / "data.jsonl"
    path.write_text(line)
    with pytest.raises(SampleError, match=expected) as caught:
        read_lines(path)
    assert "\n" not in str(caught.value)


def test_conversations_longer_than_a_row_are_still_learned_where_nothing_else_is(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """A batch is never empty."""
    reports: list[Report] = []
    settings = config(tmp_path, num_steps=1, lines_per_batch=2, row_tokens=64, evaluate_every=1)
    Trainer(checkpoint, samples(), [], settings, on_report=reports.append).run()
    assert reports[0].loss_full > 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", b"garbage"])
def test_a_damaged_state_is_one_line(checkpoint: Checkpoint, tmp_path: Path, damage: bytes) -> None:
    """It is neither trained over nor a traceback."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/state.pt").write_bytes(damage)
    with pytest.raises(TuningError, match=r"state\.pt: is damaged, or"):
        Trainer(checkpoint, samples(), [], config(tmp_path)).run()
    assert (tmp_path / "run/state.pt").read_bytes() == damage


def test_no_data_and_no_room_for_the_result_are_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The option, and what to give instead."""
    with pytest.raises(TuningError, match=r"--data: there is no reply to learn"):
        Trainer(checkpoint, [], [], config(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(TuningError, match=r"--output .*file/run: can't be made"):
        Trainer(checkpoint, samples(), [], config(tmp_path, output=tmp_path / "file/run"))


def test_where_answers_stand_can_be_taught(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With the loss on lookups, attention goes to the blocks that hold the answer; without it, hardly."""
    told = [
        replace(each, turns=(replace(turn, sources=tuple(b for b in turn.blocks if turn.reply[:-1] in b)),))
        for each in samples()
        for turn in each.turns
    ]
    found: dict[float, float] = {}
    for weight in (0.001, 1.0):
        settings = config(tmp_path, output=tmp_path / str(weight), retrieval_weight=weight, lora_rank=0)
        trainer = Trainer(checkpoint, told, told, settings)
        before = trainer.evaluate()
        trainer.run()
        after = trainer.evaluate()
        assert before is not None
        assert after is not None
        found[weight] = float(after.retrieval) / float(before.retrieval)
    assert found[1.0] < 0.8
    assert found[1.0] < found[0.001]


def test_a_run_that_has_minutes_ends_by_the_clock(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its learning rate comes down with the time, not with steps that it never reaches."""
    now = [0.0]
    monkeypatch.setattr("npc_engine.tuning.trainer.time.monotonic", lambda: now[0])

    def tick(_: int) -> None:
        now[0] += 6.0

    reports: list[Report] = []
    settings = config(tmp_path, num_steps=1000, minutes=0.5, evaluate_every=1, save_every=1000)
    Trainer(checkpoint, samples(), [], settings, on_report=reports.append, on_step=tick).run()
    assert len(reports) == 6
    rates = [report.learning_rate for report in reports]
    assert rates[1:] == sorted(rates[1:], reverse=True)  # the first step warms up
    assert rates[-1] < 0.01 * rates[1]


def test_too_little_memory_is_one_line(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which options to change."""

    def learn(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 238.00 MiB.")

    monkeypatch.setattr(Trainer, "_learn", learn)
    with pytest.raises(TuningError, match=r"step 1 does not fit into the GPU's memory; halve --batch"):
        Trainer(checkpoint, samples(), [], config(tmp_path)).run()


def test_several_processes_tune_one_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As ``accelerate launch`` starts them: one log, one adapter, and gradients that are shared."""
    data = tmp_path / "data.jsonl"
    turns = [sample.turns[0] for sample in samples()]
    lines = [{"blocks": list(turn.blocks), "final": turn.player, "reply": turn.reply} for turn in turns]
    data.write_text("\n".join(json.dumps(line) for line in lines))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["-m", "npc_engine", "tune", "--data", str(data), "--output", str(tmp_path / "out"), "--rank", "4"]
    options = ["--model", str(checkpoint.folder), "--steps", "6", "--batch", "4", "--evaluate-every", "3", "--json"]
    process = subprocess.run(
        [*command, *arguments, *options, "--learning-rate", "5e-3"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    reports = read_reports(tmp_path / "out")
    assert [report.step for report in reports] == [3, 6]
    assert reports[1].loss_full < reports[0].loss_full
    assert json.loads(process.stdout.splitlines()[-1])["step"] == 6
    Adapter.open(tmp_path / "out/result")
