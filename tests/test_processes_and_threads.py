"""A detector in child processes and threads, pickled, copied, and with other default dtypes."""

import copy
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from dinocore import Target, build_model, criterion, load_config, load_detector
from dinocore.data.batch import Sample, collate, normalise
from dinocore.data.synthetic.smear import draw_smear
from dinocore.model.layers import checkpointed
from dinocore.model.ops import is_reference, use_backend, watch_sampling


@pytest.fixture(scope="module")
def detector():
    return load_detector(amp="off")


@pytest.fixture(scope="module")
def image():
    return draw_smear(5, 0, (320, 240))[0]


@pytest.fixture
def two_threads():
    """Two PyTorch threads, as by default on a machine with two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python warns about forking with threads
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_child_process_can_detect_after_its_parent(detector, image, two_threads, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    expected = detector(image)  # starts threads, which a forked child does not have
    pool = ProcessPoolExecutor(1, multiprocessing.get_context(method))
    try:
        actual = pool.submit(detector, image).result(timeout=300)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()
    assert torch.allclose(actual.scores, expected.scores, atol=1e-3)


def test_threads_share_a_detector(detector, image):
    images = [image, image[:, ::-1].copy(), np.full((100, 150, 3), 90, np.uint8)] * 2
    alone = [detector(one) for one in images]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(detector, images))
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.scores, other.scores, atol=1e-3)


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))], ids=["deepcopy", "pickle"]
)
def test_a_copy_gives_the_same_results_and_shares_no_memory(detector, image, make_copy):
    other = make_copy(detector)
    assert torch.equal(other(image).boxes_xyxy, detector(image).boxes_xyxy)
    assert [c.name for c in other.categories] == [c.name for c in detector.categories]
    ours, theirs = ({p.data_ptr() for p in d.model.parameters()} for d in (detector, other))
    assert not ours & theirs and other.threshold == detector.threshold


def test_a_backend_is_chosen_for_one_thread_or_for_all():
    results = {}
    with use_backend("reference"):
        other = threading.Thread(target=lambda: results.update(other_thread=is_reference()))
        other.start()
        other.join()
        assert is_reference()
    with use_backend("reference", all_threads=True):
        another = threading.Thread(target=lambda: results.update(all_threads=is_reference()))
        another.start()
        another.join()
    assert results == {"other_thread": False, "all_threads": True} and not is_reference()


def test_sampling_of_other_threads_is_not_recorded(detector, image):
    detector(image)
    calls = []
    with watch_sampling(calls.append), ThreadPoolExecutor(1) as pool, use_backend("reference"):
        pool.submit(detector, image).result()
    assert calls == []


def test_recomputation_uses_the_backend_of_the_forward_pass():
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.recorded = []

        def forward(self, x):
            self.recorded.append(is_reference())
            return x.sin()

    layer = Recorder()
    with use_backend("reference"):
        output = checkpointed(layer, torch.ones(2, requires_grad=True))
    output.sum().backward()
    assert layer.recorded == [True, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_default_dtype_does_not_change_the_detections(dtype, detector, image):
    expected = detector(image)
    torch.set_default_dtype(dtype)
    try:
        actual = load_detector(amp="off")(image)
    finally:
        torch.set_default_dtype(torch.float32)
    assert actual.scores.dtype == torch.float32 and torch.allclose(actual.scores, expected.scores, atol=1e-4)
    assert torch.allclose(actual.boxes_xyxy, expected.boxes_xyxy, atol=0.05)


def test_a_custom_training_step_works_with_another_default_dtype():
    settings = [
        "model.backbone=timm/test_resnet", "model.backbone_weights=none", "model.hidden_dim=32", "model.num_heads=4",
        "model.ffn_dim=48", "model.num_queries=8", "model.num_encoder_layers=1", "model.num_decoder_layers=1",
    ]  # fmt: skip
    config = load_config("r50-4scale", settings)
    torch.set_default_dtype(torch.float64)
    try:
        boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
        sample = Sample(torch.zeros(3, 48, 64, dtype=torch.uint8), Target(torch.tensor([0]), boxes), 0, (48, 64))
        model = build_model(config.model).train()
        batch = normalise(collate([sample]), config.model.pixel_mean, config.model.pixel_std, torch.device("cpu"))
        output = model(batch.images, batch.padding, batch.targets)
        sum(criterion(output, batch.targets, 1, config.loss).values()).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.decoder.layers[0].self_attn.in_proj_weight.grad.abs().sum() > 0
