"""Ranks on one machine share a dataset: one reads it, and all map its arrays."""

import os
import pickle
import threading

import numpy as np
import pytest

from dinocore.config import DataConfig
from dinocore.data import shared
from dinocore.data.annotations import Annotations
from dinocore.data.dataset import DataSet, open_dataset
from dinocore.data.loaders import TrainingImages
from dinocore.data.shared import MappedArray, map_annotations, open_shared_dataset
from dinocore.data.synthetic.sample import write_sample_data
from dinocore.errors import EnvironmentFault, PeerFailed


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    write_sample_data(folder, num_images=5, seed=1, size=(96, 72))
    return DataConfig(path=str(folder))


@pytest.fixture
def open_on_ranks(on_ranks):
    """A function that opens the dataset on `size` ranks and returns each rank's dataset or error."""
    return lambda size, config: on_ranks(size, lambda group: open_shared_dataset(config, group))


def arrays(annotations):
    return {name: value for name, value in annotations._asdict().items() if isinstance(value, np.ndarray)}


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """Two ranks per machine, and temporary files in `tmp_path`; the list has one entry per read of the dataset."""
    calls = []

    def recording_open(config):
        calls.append(threading.current_thread())
        return open_dataset(config)

    monkeypatch.setattr(shared, "open_dataset", recording_open)
    monkeypatch.setattr(shared, "leader_of", lambda rank: rank - rank % 2)
    monkeypatch.setattr(shared.tempfile, "tempdir", str(tmp_path))
    return calls


def test_one_rank_per_machine_reads_and_all_get_the_same_dataset(open_on_ranks, config, reads, tmp_path):
    expected, datasets = open_dataset(config), open_on_ranks(4, config)
    assert len(reads) == 2, "four ranks on two machines"
    for data in datasets:
        assert isinstance(data, DataSet) and (data.source, data.notes) == (expected.source, expected.notes)
        for ours, theirs in ((data.train, expected.train), (data.val, expected.val)):
            assert ours.categories == theirs.categories and ours.path(0) == theirs.path(0)
            for name, value in arrays(theirs).items():
                assert isinstance(getattr(ours, name), MappedArray) and np.array_equal(getattr(ours, name), value), name
                assert getattr(ours, name).dtype == value.dtype
    if os.name == "posix":
        assert list(tmp_path.iterdir()) == [], "files are removed once all ranks have opened them"


def test_training_images_are_the_same_with_mapped_arrays(open_on_ranks, config, reads):
    unshared, (ours, _) = open_dataset(config), open_on_ranks(2, config)
    for k in range(2):
        a, b = (TrainingImages(data.train, config, 0)[1, k] for data in (unshared, ours))
        assert (
            a.image.equal(b.image) and a.target.boxes.equal(b.target.boxes) and a.target.labels.equal(b.target.labels)
        )


def test_a_mapped_array_is_pickled_as_its_file_name(tmp_path):
    boxes = np.arange(40_000, dtype=np.float64).reshape(-1, 4)
    empty = np.zeros((0, 2), np.int64)
    annotations = Annotations(tmp_path, tmp_path, [], *[empty] * 4, boxes, *[empty] * 3, [])
    mapped = map_annotations(annotations, tmp_path, "train")
    pickled = pickle.dumps(mapped)
    assert len(pickled) < 4000 and np.array_equal(pickle.loads(pickled).boxes, boxes)
    part = pickle.loads(pickle.dumps(mapped.boxes[10:20]))
    assert np.array_equal(part, boxes[10:20]), "a slice is pickled as a copy"
    (tmp_path / "train-boxes.npy").unlink()
    assert np.array_equal(pickle.loads(pickle.dumps(mapped)).boxes, boxes), "without the file, a copy is pickled"


def test_a_full_disk_ends_all_ranks_with_advice(open_on_ranks, config, reads, monkeypatch):
    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared.np, "save", disk_full)
    first, second = open_on_ranks(2, config)
    assert isinstance(first, EnvironmentFault) and "No space left" in str(first) and "TMPDIR" in str(first)
    assert isinstance(second, PeerFailed) and second.exit_code == first.exit_code
