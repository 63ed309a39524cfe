"""The ``npc-engine`` command: what belongs to it, and how it ends.

Nothing here imports the engine: ``npc-engine --help`` must not wait for torch. Commands import what they need.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from npc_engine.cli import cache, model, world
from npc_engine.cli.bench import app as bench
from npc_engine.cli.output import configure_streams, print_error
from npc_engine.cli.play import play
from npc_engine.cli.replay import replay
from npc_engine.cli.serve import serve
from npc_engine.cli.tune import tune
from npc_engine.errors import NpcEngineError, UserError

_EXIT_FAILURE: Final = 1
_EXIT_MISTAKE: Final = 2
_EXIT_INTERRUPTED: Final = 130

# The base of what typer raises for a wrong command line. Where it is defined moved between typer's releases.
_CommandLineError: Final[type[Exception]] = typer.BadParameter.__mro__[2]


class _Group(TyperGroup):
    """Ends as the commands promise: 0, or one line on standard error and 2 for a mistake; a bug keeps its traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        configure_streams()
        try:
            result = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except UserError as error:
            _fail(str(error), _EXIT_MISTAKE)
        except NpcEngineError as error:
            _fail(str(error), _EXIT_FAILURE)
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(_EXIT_INTERRUPTED)
        except BrokenPipeError:
            # Whoever read us has read enough. Python would complain at exit when it flushes standard output again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_EXIT_FAILURE)
        except _CommandLineError as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "npc-engine"
            message = getattr(error, "format_message", error.__str__)().strip().rstrip(".")
            _fail(f"{message}; see {command} --help", _EXIT_MISTAKE)
        sys.exit(result if isinstance(result, int) else 0)


app = typer.Typer(
    name="npc-engine",
    cls=_Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="NPC dialogue over cached blocks: talk to the NPCs of a world, serve them to a game, look inside.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from npc_engine import __version__

        typer.echo(f"npc-engine {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command()(play)
app.command()(serve)
app.command()(replay)
app.command()(tune)
app.add_typer(bench, name="bench")
app.add_typer(model.app, name="model")
app.add_typer(world.app, name="world")
app.add_typer(cache.app, name="cache")


def main() -> None:
    """The console script."""
    app(prog_name="npc-engine")


def _fail(message: str, code: int) -> NoReturn:
    print_error(message)
    sys.exit(code)


if __name__ == "__main__":
    main()
