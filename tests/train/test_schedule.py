"""When a run evaluates, saves and ends."""

import pytest

from dinocore.config import TrainConfig
from dinocore.train.schedule import Schedule
from dinocore.train.state import Progress


def make_schedule(**settings) -> Schedule:
    """A schedule with three steps per epoch."""
    return Schedule(3, TrainConfig(**settings))


@pytest.mark.parametrize(
    ("epochs", "every", "expected"), [(5, 2, [6, 12, 15]), (4, 2, [6, 12]), (2, 9, [6]), (3, 1, [3, 6, 9])]
)
def test_every_few_epochs_and_the_last_one_are_evaluated(epochs, every, expected):
    schedule = make_schedule(epochs=epochs, eval_every_epochs=every)
    assert [step for step in range(1, schedule.total + 1) if schedule.evaluates_after(step)] == expected
    assert schedule.evaluations == len(expected)


@pytest.mark.parametrize(("every", "expected"), [(0, [3, 6]), (2, [2, 3, 4, 6]), (4, [3, 4, 6])])
def test_every_epoch_is_saved_and_every_few_steps_on_request(every, expected):
    schedule = make_schedule(epochs=2, save_every_steps=every)
    assert [step for step in range(1, 7) if schedule.saves_after(step)] == expected


def test_a_run_is_over_after_its_last_step_but_not_before_its_evaluation():
    schedule = make_schedule(epochs=2)
    assert not schedule.over(Progress(step=5))
    assert "epoch 2 of 2 is done" in schedule.over(Progress(step=6))
    assert not schedule.over(Progress(step=6, due_evaluation=2))


def test_a_finished_run_suggests_more_epochs_than_it_has_done_even_if_fewer_are_configured():
    assert (
        make_schedule(epochs=2).over(Progress(step=9))
        == "3 epochs are done, --epochs is 2; to train longer, add --epochs 6"
    )
    assert make_schedule(epochs=3).over(Progress(step=9)) == "epoch 3 of 3 is done; to train longer, add --epochs 6"


def test_patience_counts_evaluations_that_were_not_better():
    schedule = make_schedule(epochs=9, patience=2)
    assert not schedule.over(Progress(step=9, evals_since_best=1))
    assert "stopped early: step 3 was the best" in schedule.over(Progress(step=9, evals_since_best=2, best_step=3))
