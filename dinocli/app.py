"""The `dino` command. Each subcommand is one small file; none of them imports torch before it runs."""

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from dinocore import __version__
from dinocore.error_codes import CODES
from dinocore.errors import DinoError, EnvironmentFault, Interrupted

from .commands.benchmark import benchmark
from .commands.check_data import check_data
from .commands.convert import convert
from .commands.convert_data import convert_data
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.info import info
from .commands.inspect_attention import inspect_attention
from .commands.inspect_data import inspect_data
from .commands.inspect_mask import inspect_mask
from .commands.inspect_matching import inspect_matching
from .commands.inspect_proposals import inspect_proposals
from .commands.predict import predict
from .commands.presets import presets
from .commands.sample_data import sample_data
from .commands.train import train
from .commands.weights import weights

app = typer.Typer(
    name="dino",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="DINO, the object detector (arXiv 2203.03605): train it, use it, look inside.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dino {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


app.command()(train)
app.command("eval")(evaluate)
app.command()(predict)
app.command("inspect-mask")(inspect_mask)
app.command("inspect-proposals")(inspect_proposals)
app.command("inspect-matching")(inspect_matching)
app.command("inspect-attention")(inspect_attention)
app.command()(presets)
app.command()(convert)
app.command()(export)
app.command()(info)
app.command()(weights)
app.command("check-data")(check_data)
app.command("inspect-data")(inspect_data)
app.command("convert-data")(convert_data)
app.command("sample-data")(sample_data)
app.command()(benchmark)


class _Said(logging.Handler):
    """What dinocore has to tell, as words on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        from .console import say

        say(record.getMessage())


SAID = _Said()


def main() -> None:
    """Run the app; an error that the user can put right is said in words, not as a traceback."""
    logging.getLogger("dinocore").addHandler(SAID)
    logging.getLogger("dinocore").setLevel(logging.INFO)
    try:
        code = _run()
    except DinoError as error:
        _end(error)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        _end(Interrupted("interrupted", 130))
    except Exception as error:
        if "torch" in sys.modules:
            _end_for_want_of_memory(error)
        from .console import words

        words.print_exception(show_locals=False)
        fault = DinoError(f"{type(error).__name__}: {error}", code="BUG", fix=CODES["BUG"].fix)
        fault.exit_code = 1
        _end(fault)
    sys.exit(code or 0)


def _run() -> int | None:
    """The exit code of a command that was understood.

    Typer ends the process for arguments that it doesn't understand, and with 1 where a pipe is closed; both are ours to
    say. Its exceptions are known by what they can do: Typer brings its own copy of click.
    """
    try:
        return app(standalone_mode=False)
    except Exception as error:
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        context = getattr(error, "ctx", None)
        if context and type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help())
            return 0
        command = context.command_path if context else "dino"
        raise DinoError(explain().removesuffix("."), code="USAGE", fix=f"{command} --help") from None


def _end_for_want_of_memory(error: Exception) -> None:
    """End with 5 if that is what the error says."""
    from dinocore.train.failures.classify import is_out_of_memory

    if is_out_of_memory(error):
        fix = "take smaller pictures, fewer at a time, or a smaller model"
        _end(EnvironmentFault("memory does not suffice", fix=fix))


def _end(error: DinoError) -> NoReturn:
    """Say an error, with --json also as an object on stdout, and end with its code."""
    from .console import fail, print_json

    rank = os.environ.get("RANK", "0")
    if rank != "0":
        error.what = f"process {rank}: {error.what}" if error.what else ""
    elif "--json" in sys.argv:
        print_json({"error": error.as_dict()})
    if error.what:  # else another process has said it
        fail(error)
    sys.exit(error.exit_code)
