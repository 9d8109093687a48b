"""The `dino` command. Each subcommand is one small file; none of them imports torch before it runs."""

import os
import sys
from typing import Annotated

import typer

from dinocore import __version__

from .benchmark import benchmark
from .convert import convert
from .evaluate import evaluate
from .info import info
from .inspect_mask import inspect_mask
from .inspect_proposals import inspect_proposals
from .predict import predict
from .presets import presets
from .sample_data import sample_data
from .train import train

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
app.command()(presets)
app.command()(convert)
app.command()(info)
app.command("sample-data")(sample_data)
app.command()(benchmark)


def main() -> None:
    """Run the app; an error that the user can put right is a line, not a traceback."""
    from dinocore.errors import DinoError

    from .console import fail, words

    try:
        app()
    except DinoError as error:
        rank = os.environ.get("RANK", "0")
        if str(error):  # else another process has said it
            fail(str(error) if rank == "0" else f"process {rank}: {error}")
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        words.print_exception(show_locals=False)
        fail("this is a bug in dino; please report it with the lines above")
        sys.exit(1)
