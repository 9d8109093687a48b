"""Two processes of which each has a part of every tensor (train.sharding = fsdp2)."""

import json
import pickle
import shutil

import pytest
import torch

from dinocore.errors import ConfigError
from dinocore.system.processes import Alone
from dinocore.train.run.checkpoint_folder import list_checkpoints, step_of, verify_checkpoint
from dinocore.train.setup import resumed_state
from dinocore.train.shards import INDEX, Unpickler
from dinocore.train.sharing import _check_sharded
from dinocore.weights.file import load_weights

FSDP2 = 'train.sharding="fsdp2"'
CPU = torch.device("cpu")


@pytest.fixture
def contents(small_config):
    """All tensors of a run's newest checkpoint, as one process without fsdp2 reads them; its streams; and its log."""

    def read(folder):
        newest = list_checkpoints(folder / "checkpoints")[-1]
        verify_checkpoint(newest)
        config = load_weights(newest / "model.safetensors").config
        config = config.model_copy(update={"train": config.train.model_copy(update={"sharding": "none"})})
        state = resumed_state(newest, config, CPU)
        tensors = dict(state.model.state_dict()) | {f"average/{k}": v for k, v in state.ema.model.state_dict().items()}
        names = {id(p): name for name, p in state.model.named_parameters()}
        for parameter, values in state.optimizer.state.items():
            tensors |= {f"{names[id(parameter)]}/{key}": value for key, value in values.items()}
        rest = torch.load(newest / "state.pt", weights_only=True)
        tensors |= {f"stream {rank}": one["torch"] for rank, one in enumerate(rest["streams"])}
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        timings = ("seconds", "data_seconds", "memory_mb")
        return tensors, [{key: value for key, value in row.items() if key not in timings} for row in rows]

    return read


@pytest.mark.slow
def test_a_run_in_float64_gives_what_whole_models_give(together, contents):
    codes, said, parts = together(FSDP2, fault="double", name="parts")
    assert codes == [0, 0] and all("evaluation" in text for text in said[0]), "which has no float64 on a CPU"
    (tensors, rows), (wanted, wanted_rows) = contents(parts), contents(together(fault="double", name="whole")[2])
    assert tensors.keys() == wanted.keys() and any(key.endswith("/exp_avg") for key in tensors)
    for key, value in wanted.items():
        assert (tensors[key].double() - value.double()).abs().max() <= 1e-6, key
    for row, other in zip(rows, wanted_rows, strict=True):
        assert row == pytest.approx(other, rel=1e-6)


@pytest.mark.slow
def test_stopped_and_resumed_a_run_gives_the_very_same_and_parts_are_cut_anew(together, contents):
    codes, _, straight = together(FSDP2, name="straight")
    assert codes == [0, 0]
    tensors, rows = contents(straight)
    codes, said, cut = together(FSDP2, fault="signal", rank=1, at=3, name="cut")
    assert codes == [143, 143] and "the state is saved" in said[0][0]
    assert step_of(list_checkpoints(cut / "checkpoints")[-1]) == 3
    four = shutil.copytree(cut, cut.with_name("four"))
    assert together(FSDP2, name="cut")[0] == [0, 0]
    again, again_rows = contents(cut)
    assert again.keys() == tensors.keys() and again_rows == rows
    assert all(torch.equal(again[key], value) for key, value in tensors.items())

    assert together(FSDP2, name=four.name, number=4)[0] == [0] * 4
    others, _ = contents(four)
    for key in ("encoder.layers.0.ffn.net.0.weight", "decoder.layers.0.ffn.net.0.weight/exp_avg_sq"):
        assert (others[key] - tensors[key]).abs().max() <= 1e-3, "but for dropout and the order of additions"


@pytest.mark.slow
def test_memory_that_one_process_lacks_ends_both_soon(together):
    codes, said, folder = together(FSDP2, fault="forward", rank=1, at=4)
    assert codes == [5, 5] and "go on with --resume auto" in said[1][0] and "connection to the other" in said[0][0]
    assert [step_of(path) for path in list_checkpoints(folder / "checkpoints")] == [2]


@pytest.mark.slow
def test_a_bad_number_on_one_process_ends_both_together(together):
    codes, said, folder = together(FSDP2, fault="nan", rank=1, at=4)
    assert codes == [6, 6] and "is not finite in step 4" in said[0][0] and said[1] == [""]
    assert (folder / "diverged.safetensors").is_file()


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_an_index_that_would_run_code_is_refused(tmp_path, capsys):
    (tmp_path / INDEX).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print"), (tmp_path / INDEX).open("rb") as file:
        Unpickler(file).load()
    assert capsys.readouterr().out == ""


class Two(Alone):
    size = 2


@pytest.mark.parametrize(
    "group, setting, says",
    [
        (Alone(), "train.seed=1", "one process"),
        (Two(), 'train.amp="fp16"', "choose bf16"),
        (Two(), 'train.images_per_forward="probe"', "--batch-size auto"),
        (Two(), 'train.on_out_of_memory="halve"', "set train.images_per_forward"),
        (Two(), "train.batch_size=3", "a batch of 3 for 2 processes"),
    ],
)
def test_what_does_not_go_with_parts_is_refused(group, setting, says, small_config):
    with pytest.raises(ConfigError, match=says):
        _check_sharded(small_config(FSDP2, setting), group)
