"""Faults on one of two ranks: neither hangs, and the state is saved where possible."""

import shutil

import pytest

from dinocore.train.run.checkpoint_folder import list_checkpoints, step_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault, rank", [("forward", 0), ("backward", 1), ("last", 0)])
def test_if_one_rank_runs_out_of_memory_both_save_the_state_before_the_step(fault, rank, run_ranks, outcome):
    codes, messages, folder = run_ranks(fault=fault, rank=rank, at=4)
    assert codes == [5, 5]
    assert f"out of memory on rank {rank} of 2 (peak" in messages[0][0] and messages[1] == [""]
    checkpoints = list_checkpoints(folder / "checkpoints")
    assert [step_of(path) for path in checkpoints] == [2, 3]
    uninterrupted = run_ranks("train.save_every_steps=3", name="uninterrupted")[2]
    shutil.rmtree(list_checkpoints(uninterrupted / "checkpoints")[-1])
    assert outcome(folder)[0] == outcome(uninterrupted)[0], "weights, optimizer and the RNG states of both ranks"


@pytest.mark.parametrize("fault, rank", [("forward", 0), ("backward", 1)])
def test_both_ranks_continue_with_halved_micro_batches_with_identical_results(fault, rank, run_ranks, outcome):
    batch_of_eight = ("train.batch_size=8", "train.epochs=3")
    halve = ("train.micro_batch_size=2", 'train.on_out_of_memory="halve"')
    codes, messages, folder = run_ranks(*batch_of_eight, *halve, fault=fault, rank=rank, at=1)
    assert codes == [0, 0] and len(messages[0]) == 1
    assert messages[0][0].endswith("Repeating step 1 with train.micro_batch_size = 1, from now on")
    assert outcome(folder) == outcome(run_ranks(*batch_of_eight, name="uninterrupted")[2])


IN_EVALUATION = "the evaluation after epoch 1 failed (RuntimeError: a bug), 1 of this run so far; training continues"
NOT_SAVED = "cannot be saved (RuntimeError: a bug); training continues"
EVALUATION_FAULTS = [
    ("detector", 0, IN_EVALUATION), ("detector", 1, IN_EVALUATION), ("detect", 1, IN_EVALUATION),
    ("metrics", 0, IN_EVALUATION), ("best", 0, f"the best weights {NOT_SAVED}"),
    ("examples", 0, f"examples for the report {NOT_SAVED}"),
    ("log", 0, "MetricsLog failed (RuntimeError: a bug); the run continues"),
]  # fmt: skip


@pytest.mark.parametrize("fault, rank, warning", EVALUATION_FAULTS)
def test_a_failed_evaluation_or_log_on_one_rank_is_a_warning_and_both_continue(fault, rank, warning, run_ranks):
    codes, messages, folder = run_ranks("train.batch_size=8", fault=fault, rank=rank)
    assert codes == [0, 0] and messages[0] == [warning]
    assert [step_of(path) for path in list_checkpoints(folder / "checkpoints")] == [1, 2]
