"""``npc-engine tune``: teach a model to answer from blocks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from npc_engine.cli.options import DEFAULT_MODEL, CacheDirOption, JsonOption, ModelOption, cache_dir
from npc_engine.cli.output import console, console_for_people, print_json
from npc_engine.cli.progress import LoadingBar
from npc_engine.errors import TuningError

if TYPE_CHECKING:
    from npc_engine.inference import Checkpoint
    from npc_engine.tuning.data import Line
    from npc_engine.tuning.run_log import Report


def tune(
    *,
    data: Annotated[
        list[Path], typer.Option("--data", metavar="FILE", help="JSON Lines of samples or scenes; may be repeated.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Where the run and its result go.")],
    development: Annotated[
        list[Path], typer.Option("--development", metavar="FILE", help="The same, to watch while training.")
    ] = [],  # noqa: B006 - typer's way to say none
    model: ModelOption = DEFAULT_MODEL,
    cache: CacheDirOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates of the weights.")] = 1000,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Take this long instead, at most --steps; the learning rate follows the clock."),
    ] = None,
    rank: Annotated[int, typer.Option(min=0, help="Rank of the LoRA adapter; 0 trains all weights.")] = 64,
    alpha: Annotated[int, typer.Option(min=1, help="Its scale is alpha / rank.")] = 128,
    dropout: Annotated[float, typer.Option(min=0.0, max=0.9, help="Of the adapter's inputs, while training.")] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="Highest rate, after the warm-up.")] = 2e-4,
    kl: Annotated[float, typer.Option(min=0.0, help="Weight of KL(full ‖ blocks) in the loss.")] = 1.0,
    retrieval: Annotated[
        float, typer.Option(min=0.0, help="Weight of the loss that says in which blocks answers stand (scenes only).")
    ] = 0.0,
    batch: Annotated[int, typer.Option(min=1, help="Conversations per pass and process.")] = 12,
    accumulation: Annotated[int, typer.Option(min=1, help="Passes per step.")] = 1,
    row_tokens: Annotated[int, typer.Option(min=64, help="Tokens that conversations are packed into.")] = 2048,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    repeat: Annotated[int, typer.Option(min=1, help="How often each line of --data counts beside --generated.")] = 1,
    generated: Annotated[int, typer.Option(min=0, help="Generated scenes to add.")] = 0,
    augment: Annotated[
        bool, typer.Option(help="Give scenes other names, numbers and neighbours each time they are seen.")
    ] = True,
    workers: Annotated[int, typer.Option(min=0, help="Processes that prepare data.")] = 0,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between lines of metrics.csv.")] = 50,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between states that a run resumes from.")] = 200,
    seed: Annotated[int, typer.Option(help="Decides order and variation of the data.")] = 0,
    int8: Annotated[bool, typer.Option(help="Store the adapter in int8 instead of float16.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model so that it answers from blocks as well as from full attention.

    Every conversation is learned in both modes, with the loss on replies. The result is an adapter for --adapter (or,
    with --rank 0, a checkpoint for --model) in OUTPUT/result, with a model card; curves are in OUTPUT/metrics.csv and,
    where TensorBoard is installed, OUTPUT/tensorboard. The same command goes on where a stopped run was. On several
    GPUs, start it with `accelerate launch -m npc_engine tune ...`.
    """
    try:
        from npc_engine.tuning.output import save_result
        from npc_engine.tuning.run_log import read_reports
        from npc_engine.tuning.trainer import Trainer, TuningConfig
    except ImportError as error:
        raise TuningError(f"tune needs {error.name}, which is not installed: pip install 'npc-engine[tune]'") from error

    from npc_engine.tuning.card import write_card
    from npc_engine.tuning.data import Variation

    config = TuningConfig(
        output=output,
        lora_rank=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        learning_rate=learning_rate,
        num_steps=steps,
        minutes=minutes,
        lines_per_batch=batch,
        accumulation=accumulation,
        row_tokens=row_tokens,
        kl_weight=kl,
        retrieval_weight=retrieval,
        precision=precision,
        seed=seed,
        variation=Variation() if augment else None,
        num_workers=workers,
        evaluate_every=evaluate_every,
        save_every=save_every,
    )
    lines = _read(data) * repeat + _generate(generated, seed)
    watched = _read(development)
    checkpoint = _resolve(model, cache)
    people = console_for_people(as_json=as_json)
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("tuning", total=1.0)
        trainer = Trainer(
            checkpoint,
            lines,
            watched,
            config,
            on_report=lambda report: people.print(_line(report)),
            on_step=lambda step: bar.update(task, completed=trainer.share_done, description=f"step {step}"),
        )
        trainer.run()
    if not trainer.is_main:
        return
    folder = save_result(trainer.language_model, checkpoint, output / "result", int8=int8)
    reports = read_reports(output)
    write_card(folder, checkpoint.name, config, _describe_data(data, generated, repeat), reports)
    people.print(
        f"the result is in {folder}; use it with {'--adapter' if rank else '--model'} {folder}", soft_wrap=True
    )
    if as_json:
        print_json({"result": str(folder), "model": checkpoint.name, **asdict(reports[-1])})


def _read(paths: list[Path]) -> list[Line]:
    from npc_engine.tuning.samples import read_lines

    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    return [line for file in files for line in read_lines(file)]


def _generate(num_scenes: int, seed: int) -> list[Line]:
    from npc_engine.tuning.generator import generate_scenes

    return list(generate_scenes(num_scenes, seed))


def _resolve(model: str, cache: Path | None) -> Checkpoint:
    from npc_engine.inference import resolve
    from npc_engine.runtime import Progress

    with LoadingBar(console(stderr=True)) as bar:
        return resolve(
            model,
            cache_dir(cache),
            on_progress=lambda done, total: bar.show(Progress(f"fetching {model}", done, total)),
            on_stage=lambda line: bar.show(Progress(line)),
        )


def _line(report: Report) -> str:
    text = (
        f"step {report.step}: full {report.loss_full:.3f}, blocks {report.loss_blocks:.3f}, KL {report.kl:.4f}, "
        f"{report.tokens_per_s:,.0f} tokens/s"
    )
    if report.retrieval:
        text += f", retrieval {report.retrieval:.3f}"
    if report.dev_full is not None:
        text += f" · development: full {report.dev_full:.3f}, blocks {report.dev_blocks:.3f}, KL {report.dev_kl:.4f}"
    return text


def _describe_data(data: list[Path], generated: int, repeat: int) -> str:
    names = ", ".join(sorted({path.name for path in data}))
    times = f", each line counted {repeat} times" if repeat > 1 else ""
    made = f" and {generated:,} generated scenes" if generated else ""
    return f"{names}{times}{made}"
