"""`dino train --dry-run`."""

from dinocore.data.dataset import open_dataset
from dinocore.data.loaders import steps_per_epoch
from dinocore.errors import ConfigError
from dinocore.train.context import RunContext, describe, exceeded_limits
from dinocore.train.dry_run import Expectation, dry_run
from dinocore.train.failures.memory import with_probed_size
from dinocore.train.setup import fresh_state

from ..console import data, say, warn
from ._train_work import Asked, checked, place


def dry_run_command(asked: Asked) -> None:
    """Do everything that a new run does once, and say what to expect of it."""
    if asked.resume is not None:
        raise ConfigError("--dry-run tries what a new run does; leave --resume out")
    with place(asked.device) as here:
        config, run = here.group.on_main(lambda: checked(asked))
        found = here.group.main_first(lambda: open_dataset(config.data))
        config = config.replace("model.num_classes", len(found.train.categories))
        state = fresh_state(config, found.train.categories, here.device, here.group)
        context = RunContext(config, found, run, here.device, asked.stop, here.group)
        context = with_probed_size(context, state)
        if here.group.main:
            facts = describe(context, state, steps_per_epoch(len(found.train.image_ids), config.train.batch_size))
            for key, value in facts.items():
                say(f"{key:<12}{value}")
            for limit in exceeded_limits(config, found.train):
                warn(limit)
            for note in found.notes:
                say(f"note: {note}")
        expected = dry_run(context, state)
        if here.group.main:
            _show(expected)


def _show(expected: Expectation) -> None:
    rows = {
        "memory": f"{expected.peak_memory_mb:.0f} MB at most, in the largest step",
        "step": f"{expected.step_s:.2f} s; a largest pass of it {expected.largest_pass_s:.2f} s",
        "evaluation": f"{expected.evaluation_s:.1f} s, {expected.evaluations} times",
        "save": f"{expected.save_s:.2f} s, {expected.checkpoint_mb:.0f} MB",
        "run": f"about {_duration(expected.run_s)} for {expected.steps} steps, by one step, evaluation and save",
    }
    for key, value in rows.items():
        data.print(f"{key:<12}{value}")


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
