"""``npc-engine model``: fetch models, and look at them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from npc_engine.cli.options import (
    DEFAULT_MODEL,
    CacheDirOption,
    DeviceOption,
    DTypeOption,
    JsonOption,
    ModelOption,
    cache_dir,
)
from npc_engine.cli.output import console, console_for_people, human_bytes, print_json

if TYPE_CHECKING:
    from npc_engine.inference import Checkpoint

app = typer.Typer(help="Fetch models, and look at them.", rich_markup_mode="rich")


@app.command()
def pull(model: ModelOption = DEFAULT_MODEL, cache: CacheDirOption = None, as_json: JsonOption = False) -> None:
    """Fetch a model, check it, and make it ready to load; the second time it is there already."""
    checkpoint, is_new = _resolve(model, cache)
    people = console_for_people(as_json=as_json)
    state = "is ready" if is_new else "is there already"
    people.print(
        f"{checkpoint.name} {state}: {human_bytes(checkpoint.num_bytes)} in {checkpoint.folder}", soft_wrap=True
    )
    if as_json:
        print_json({**_describe(checkpoint), "was_present": not is_new})


@app.command()
def info(
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "cpu",
    dtype: DTypeOption = None,
    cache: CacheDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is, and how it would run here. Reads no weights; fetches the model if it is not there."""
    from npc_engine.inference import ChatTemplate, Tokenizer
    from npc_engine.inference.model import pick_device, pick_dtype
    from npc_engine.inference.model_config import ModelConfig

    picked = str(pick_dtype(dtype, pick_device(device))).removeprefix("torch.")
    checkpoint, _ = _resolve(model, cache)
    config = ModelConfig.from_dict(checkpoint.config, str(checkpoint.folder / "config.json"))
    tokenizer = Tokenizer(checkpoint.folder)
    template = ChatTemplate.load(checkpoint.folder, tokenizer)
    names = {tokenizer.token_id(text): text for text in tokenizer.special_tokens.values()}
    roles = ["system", "user", "assistant"] if template.has_system_role else ["user", "assistant"]
    summary = {
        **_describe(checkpoint),
        "architecture": config.architecture,
        "num_parameters": sum(map(_num_parameters, checkpoint.weight_files)),
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_type": config.rope.type,
        "device": device,
        "dtype": picked,
        "roles": roles,
        "stop_tokens": [names.get(each, f"token {each}") for each in sorted(template.stop_ids)],
    }
    table = Table(show_header=False, box=None)
    for name, value in summary.items():
        table.add_row(name, Text(_show(name, value), overflow="fold"))
    console_for_people(as_json=as_json).print(table)
    if as_json:
        print_json(summary)


@app.command("average")
def average_adapters(
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Folders of adapters of one base.")],
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Where the mean goes.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of the mean.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Average adapters that were tuned from one model; the mean often answers better than each of them."""
    from npc_engine.tuning.averaging import average

    lost = average(adapters, output, rank=rank)
    console_for_people(as_json=as_json).print(
        f"{output}: {len(adapters)} adapters, {100 * lost:.1f} % left out by the rank"
    )
    if as_json:
        print_json({"adapter": str(output), "lost": round(lost, 4)})


def _resolve(model: str, cache: Path | None) -> tuple[Checkpoint, bool]:
    """The checkpoint, and whether something had to be done to have it."""
    from npc_engine.cli.progress import LoadingBar
    from npc_engine.inference import resolve
    from npc_engine.runtime import Progress

    with LoadingBar(console(stderr=True)) as bar:
        checkpoint = resolve(
            model,
            cache_dir(cache),
            on_progress=lambda done, total: bar.show(Progress(f"fetching {model}", done, total)),
            on_stage=lambda line: bar.show(Progress(line)),
        )
    return checkpoint, bool(bar.stages)


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "model": checkpoint.name,
        "folder": str(checkpoint.folder),
        "num_bytes": checkpoint.num_bytes,
        "fingerprint": checkpoint.fingerprint,
    }


def _num_parameters(weights: Path) -> int:
    """Elements of all tensors in a safetensors file, by its header; `resolve` has checked that it is whole."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _show(name: str, value: object) -> str:
    match value:
        case list():
            return ", ".join(map(str, value))
        case int() if name == "num_bytes":
            return f"{value:,} ({human_bytes(value)})"
        case int():
            return f"{value:,}"
    return str(value)
