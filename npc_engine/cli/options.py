"""Options that commands share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from npc_engine.config import DEFAULT_MODEL, EngineConfig, SamplingParams, default_cache_dir, default_data_dir

WorldArgument = Annotated[str, typer.Argument(metavar="WORLD", help="Folder of a world.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A folder, a GGUF file, a hub id (org/name), medium (Qwen2.5-Coder-0.5B-Instruct from the hub), or "
        "default (the embedded model).",
        rich_help_panel="Model",
    ),
]
AdapterOption = Annotated[
    str,
    typer.Option(
        "--adapter",
        metavar="ADAPTER",
        help="An adapter's folder (see tune), default (what comes with the model) or none.",
        rich_help_panel="Model",
    ),
]
FidelityOption = Annotated[
    str,
    typer.Option(
        "--fidelity",
        metavar="FIDELITY",
        help="How close to full attention: fast, balanced, exact, or auto (fast with an adapter, else balanced).",
        rich_help_panel="Model",
    ),
]
AttentionOption = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="WAY",
        help="buffers (one per conversation), sdpa or triton (shared pages; triton on a GPU), or auto (buffers).",
        rich_help_panel="Model",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.", rich_help_panel="Model")
]
DTypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="float32, bfloat16 or float16.",
        show_default="what the device computes fastest",
        rich_help_panel="Model",
    ),
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        metavar="FOLDER",
        help="Where models are kept.",
        show_default="$NPC_ENGINE_HOME/cache, or the user's cache folder",
        rich_help_panel="Folders",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Where saves and blocks are kept.",
        show_default="$NPC_ENGINE_HOME, or the user's data folder",
        rich_help_panel="Folders",
    ),
]

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_FACTORS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str | int) -> int:
    """``512M``, ``2G`` or a number of bytes."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write a number of bytes, or 512M, or 2G")
    return int(float(match[1]) * _FACTORS[match[2].lower()])


def _size(name: str, help_text: str, default: str) -> Any:
    return typer.Option(
        name, metavar="SIZE", parser=parse_size, help=help_text, show_default=default, rich_help_panel="Limits"
    )


_DEFAULTS: Final = EngineConfig(data_dir=Path(), cache_dir=Path())


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Everything that a command line may say about an engine; see :func:`takes_engine_options`.

    A sampling option is None where the user said nothing about it.
    """

    model: ModelOption = _DEFAULTS.model
    adapter: AdapterOption = _DEFAULTS.adapter
    fidelity: FidelityOption = _DEFAULTS.fidelity
    attention: AttentionOption = _DEFAULTS.attention
    device: DeviceOption = _DEFAULTS.device
    dtype: DTypeOption = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            min=1,
            help="Processors that the model may use.",
            show_default="all that this process may use",
            rich_help_panel="Model",
        ),
    ] = None
    data_dir: DataDirOption = None
    cache_dir: CacheDirOption = None
    max_block_memory: Annotated[int, _size("--max-block-memory", "Blocks in memory.", "2G")] = (
        _DEFAULTS.max_block_memory
    )
    max_context_memory: Annotated[int, _size("--max-context-memory", "Conversations in memory.", "512M")] = (
        _DEFAULTS.max_context_memory
    )
    max_store_size: Annotated[int, _size("--max-store-size", "Blocks on disk.", "16G")] = _DEFAULTS.max_store_size
    max_context_tokens: Annotated[
        int,
        typer.Option(
            "--max-context-tokens",
            min=512,
            help="Tokens of prompt and reply, room kept for the longest utterance.",
            rich_help_panel="Limits",
        ),
    ] = _DEFAULTS.max_context_tokens
    max_utterance_tokens: Annotated[
        int, typer.Option("--max-utterance-tokens", min=1, help="Tokens of an utterance.", rich_help_panel="Limits")
    ] = _DEFAULTS.max_utterance_tokens
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="Tokens of a reply.",
            show_default=str(_DEFAULTS.sampling.max_tokens),
            rich_help_panel="Sampling",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            min=0.0,
            help="0 always takes the likeliest token.",
            show_default="0",
            rich_help_panel="Sampling",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            min=0.0,
            max=1.0,
            help="Keep the likeliest tokens that hold this share of probability.",
            show_default="1",
            rich_help_panel="Sampling",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p",
            min=0.0,
            max=1.0,
            help="Drop tokens below this share of the likeliest one's probability.",
            show_default="0",
            rich_help_panel="Sampling",
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty",
            min=0.1,
            help="Divides the logits of tokens that a reply already used.",
            show_default=str(_DEFAULTS.sampling.repetition_penalty),
            rich_help_panel="Sampling",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Seed of the session.", show_default="0", rich_help_panel="Sampling"),
    ] = None

    def config(self, defaults: SamplingParams | None = None) -> EngineConfig:
        """The engine's settings; `defaults` hold for sampling options that the user did not give."""
        defaults = defaults or SamplingParams()
        names = ("max_tokens", "temperature", "top_p", "min_p", "repetition_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        seed = self.seed if self.seed is not None else defaults.seed or 0
        return EngineConfig(
            model=self.model,
            adapter=self.adapter,
            fidelity=self.fidelity,
            attention=self.attention,
            device=self.device,
            dtype=self.dtype,
            num_threads=self.threads,
            data_dir=data_dir(self.data_dir),
            cache_dir=cache_dir(self.cache_dir),
            max_block_memory=self.max_block_memory,
            max_context_memory=self.max_context_memory,
            max_store_size=self.max_store_size,
            max_utterance_tokens=self.max_utterance_tokens,
            max_context_tokens=self.max_context_tokens,
            # One seed for every reply would make them alike: the session's seed gives each its own.
            sampling=replace(defaults, **given, seed=None),
            seed=seed,
        )


def data_dir(option: Path | None) -> Path:
    """The folder of saves and blocks."""
    return option.expanduser() if option is not None else default_data_dir()


def cache_dir(option: Path | None) -> Path:
    """The folder of models."""
    return option.expanduser() if option is not None else default_cache_dir()


def takes_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command declare ``options: EngineOptions``: on the command line its fields are options of their own."""
    hints = get_type_hints(command, include_extras=True)
    option_hints = get_type_hints(EngineOptions, include_extras=True)
    names = [field.name for field in fields(EngineOptions)]

    def expanded(**values: Any) -> None:
        options = EngineOptions(**{name: values.pop(name) for name in names})
        command(**values, options=options)

    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != "options"
    ]
    defaults: Mapping[str, Any] = asdict(EngineOptions())
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=option_hints[name])
        for name in names
    ]
    expanded.__name__ = command.__name__
    expanded.__doc__ = command.__doc__
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
    expanded.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return expanded


__all__ = [
    "DEFAULT_MODEL",
    "CacheDirOption",
    "DTypeOption",
    "DataDirOption",
    "DeviceOption",
    "EngineOptions",
    "JsonOption",
    "ModelOption",
    "WorldArgument",
    "cache_dir",
    "data_dir",
    "parse_size",
    "takes_engine_options",
]
