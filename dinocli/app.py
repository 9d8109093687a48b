"""The `dino` command. Each subcommand is a file in `commands/`, or a folder with one, imported when it is used."""

import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from dinocore import __version__
from dinocore.error_codes import CODES
from dinocore.errors import DinoError, EnvironmentFault, Interrupted
from dinocore.system.files import is_full
from dinocore.system.parent import end_with_launcher

from .start import defer_collection, is_collecting

TRAIN, USE, LOOK, DATA, WEIGHTS = "Train and measure", "Use", "Look inside", "Data", "Weights"
COMMANDS = {  # name: module in commands/ with a function of its name, group, help line
    "train": ("train.train", TRAIN, "Train on your data, or, without --data, on images that dino draws itself."),
    "eval": ("evaluate.evaluate", TRAIN, "Measure average precision, and show where it is lost."),
    "benchmark": ("benchmark", TRAIN, "Measure speed, memory and FLOPs of a model on this machine."),
    "presets": ("presets", TRAIN, "List the presets, or print every setting of one with its comment."),
    "predict": ("predict.predict", USE, "Detect objects in images or video."),
    "serve": ("serve", USE, "Serve detections over HTTP, with a demo page."),
    "export": ("export", USE, "Export weights to ONNX and other formats, checked against the model."),
    "inspect-mask": (
        "inspect.inspect_mask",
        LOOK,
        "Show which query may attend to which in the decoder during training.",
    ),
    "inspect-proposals": (
        "inspect.inspect_proposals",
        LOOK,
        "Show the first stage's scores and boxes, and their recall.",
    ),
    "inspect-matching": (
        "inspect.inspect_matching",
        LOOK,
        "Show which query is matched to which object at each stage.",
    ),
    "inspect-attention": ("inspect.inspect_attention", LOOK, "Show where deformable attention samples."),
    "inspect-data": (
        "inspect.inspect_data",
        LOOK,
        "Draw training images with their boxes exactly as the model sees them.",
    ),
    "check-data": ("check_data", DATA, "Find problems in a dataset before you train."),
    "convert-data": ("convert_data", DATA, "Write a dataset as COCO, YOLO or Pascal VOC."),
    "sample-data": ("sample_data", DATA, "Draw images of blood cells with exact boxes, in COCO layout."),
    "weights": ("weights", WEIGHTS, "List the published checkpoints that --weights takes by name."),
    "info": ("info", WEIGHTS, "Describe a weights file."),
    "push": ("push", WEIGHTS, "Publish weights on the Hugging Face hub, with a model card."),
    "convert": ("convert", WEIGHTS, "Convert weights from or to other DINO codebases."),
}
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


@contextmanager
def _keeping_exit_code() -> Iterator[None]:
    """Keep the exit code of a KeyboardInterrupt, which Typer would replace by the one for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as signalled:
        raise Interrupted("interrupted", signalled.args[0] if signalled.args else 130) from None


class LazyCommands(TyperGroup):
    """Lists commands by their help lines, and imports a command's module when it is used."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Like the base class, but a signal keeps its exit code."""
        with _keeping_exit_code():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Like the base class, but a signal keeps its exit code."""
        with _keeping_exit_code():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command named by the arguments, and its remaining arguments.

        Raises:
            DinoError: an argument is empty, which as a path would mean the current folder.
        """
        name, command, rest = super().resolve_command(ctx, args)
        for before, word in zip(["", *rest], rest, strict=False):
            if (not word or re.fullmatch("--[a-z-]+=", word)) and not ctx.resilient_parsing:  # not while completing
                place = word.removesuffix("=") or before
                what = f"the argument after {place}" if place else "the first argument"
                raise DinoError(
                    f"{what} is empty", code="USAGE", fix="check that the shell variables in your command are set"
                )
        return name, load_command(name) if name in COMMANDS else command, rest


def load_command(name: str) -> Any:
    """The command with its options."""
    module, _, _ = COMMANDS[name]
    single = typer.Typer(add_completion=False)
    function = getattr(import_module(f".commands.{module}", __package__), module.rpartition(".")[2])
    single.command(name, context_settings=HELP_OPTIONS)(function)
    return typer.main.get_command(single)


app = typer.Typer(
    name="dino",
    cls=LazyCommands,
    context_settings=HELP_OPTIONS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The DINO object detector (arXiv 2203.03605): train it, use it, look inside.",
)


def _version(requested: bool) -> None:
    if requested:
        print(f"dino {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _name, (_, _group, _help) in COMMANDS.items():
    app.command(_name, help=_help, rich_help_panel=_group)(lambda: None)


class _StderrLog(logging.Handler):
    """Shows dinocore's log messages on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        from .console import say

        say(record.getMessage())


LOG_HANDLER = _StderrLog()
PLAIN_WARNING = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
    """Show deprecation warnings like any other message, without the source line."""
    if not issubclass(category, FutureWarning) or "dinocore" not in str(rest[0]):
        return PLAIN_WARNING(message, category, *rest)
    from .console import warn

    return warn(str(message))


def console(release_signals: Callable[[], int | None] = lambda: None) -> None:
    """The entry point of the command `dino`.

    Args:
        release_signals: restores signal handling; returns the exit code of a signal that arrived before.
    """
    defer_collection()
    code = release_signals()
    if "RANK" not in os.environ:  # ranks are stopped by the launcher, which prints the reason
        hear_signals()
    main(code)


def hear_signals() -> None:
    """Make SIGTERM and SIGHUP end a command like Ctrl-C, so that it removes unfinished output."""

    def end(number: int, frame: FrameType | None) -> None:
        if is_collecting(frame):  # where Python would print an exception and continue
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
            return
        raise KeyboardInterrupt(128 + number)  # not an Exception, which other code might catch

    def die_as_usual() -> None:
        for number in handled:
            if signal.getsignal(number) == end:
                signal.signal(number, signal.SIG_DFL)

    ours = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has the first
    # `nohup` makes a process ignore SIGHUP
    handled = [number for number in ours if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=die_as_usual)  # workers have nothing to clean up


def main(interrupted: int | None = None) -> None:
    """Run the app; errors that the user can fix are shown as messages, without a traceback.

    Args:
        interrupted: the exit code of a signal that arrived while this module was imported.
    """
    try:
        _set_up()
        if interrupted:
            raise KeyboardInterrupt(interrupted)
        code = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except DinoError as error:
        _end(error)
    except BrokenPipeError:  # the reader, such as `head`, has exited
        _drop_stdout()
        sys.exit(0)
    except KeyboardInterrupt as signalled:
        _end(Interrupted("interrupted", signalled.args[0] if signalled.args else 130))
    except Exception as error:
        if isinstance(error, OSError):
            _end_if_unwritable(error)
        if "torch" in sys.modules:
            _end_if_out_of_memory(error)
        from .console import stderr

        stderr.print_exception(show_locals=False)
        fault = DinoError(f"{type(error).__name__}: {error}", code="BUG", fix=CODES["BUG"].fix)
        fault.exit_code = 1
        _end(fault)
    sys.exit(code or 0)


def _set_up() -> None:
    logging.getLogger("dinocore").addHandler(LOG_HANDLER)
    logging.getLogger("dinocore").setLevel(logging.INFO)
    warnings.showwarning = _show_warning
    from .console import check_stdout, escape_unencodable

    escape_unencodable()
    check_stdout()
    end_with_launcher()


def _drop_stdout() -> None:
    """Discard buffered output, which Python would otherwise try to write again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_if_unwritable(error: OSError) -> None:
    """Exit with code 5 if stdout cannot be written, or a disk is full."""
    from .console import StdoutFault

    if isinstance(error, StdoutFault):
        _drop_stdout()
        _end(
            EnvironmentFault(f"stdout cannot be written: {error.strerror}", fix="redirect it to a disk with free space")
        )
    if is_full(error):
        what = error.filename or "a file"
        _end(
            EnvironmentFault(f"{what} cannot be written: {error.strerror}", fix="free some disk space, also in TMPDIR")
        )


def _run() -> int | None:
    """Run the command and return its exit code.

    Typer itself would exit on invalid arguments, and with 1 on a closed pipe; here both get our own messages and codes.
    Its exceptions are recognised by their attributes, because Typer bundles its own copy of click.
    """
    try:
        if os.environ.get("_DINO_COMPLETE") == "complete_bash":
            from .completion import words_joined_for_bash

            with words_joined_for_bash():
                return app(standalone_mode=False)
        return app(standalone_mode=False)
    except Exception as error:
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        context = getattr(error, "ctx", None)
        if context and type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help())
            return 0
        command = context.command_path if context else _typed_command()
        if context and type(error).__name__ == "NoSuchOption":
            raise _no_such_option(getattr(error, "option_name", ""), context) from None
        raise DinoError(explain().removesuffix("."), code="USAGE", fix=f"{command} --help") from None


def _typed_command() -> str:
    """`dino NAME`, for errors that do not say where they were found, such as an option without its value."""
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    return f"dino {name}" if name in COMMANDS else "dino"


def _no_such_option(typed: str, context: typer.Context) -> DinoError:
    from .options import near_options

    near = near_options(typed, [option.opts[0] for option in context.command.params])
    did_you_mean = f"did you mean {' or '.join(near)}? See " if near else ""
    return DinoError(f"No such option: {typed}", code="USAGE", fix=f"{did_you_mean}{context.command_path} --help")


def _end_if_out_of_memory(error: Exception) -> None:
    """Exit with code 5 if the error means that memory ran out."""
    from dinocore.train.failures.classify import is_out_of_memory

    if is_out_of_memory(error):
        fix = "use smaller images, smaller batches or a smaller model"
        _end(EnvironmentFault("out of memory", fix=fix))


def _end(error: DinoError) -> NoReturn:
    """Print an error, with --json also as an object on stdout, and exit with its code."""
    from .console import fail, print_json

    rank = os.environ.get("RANK", "0")
    if rank != "0":
        error.what = f"rank {rank}: {error.what}" if error.what else ""
    elif "--json" in sys.argv:
        print_json({"error": error.as_dict()})
    if error.what:  # otherwise another rank has printed it
        fail(error)
    sys.exit(error.exit_code)
