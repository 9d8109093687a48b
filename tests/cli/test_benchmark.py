"""`dino benchmark`: measurements, FLOP counts, profiles and errors."""

import json
import sys

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils.flop_counter import FlopCounterMode

from dinocore import benchmark, load_config
from dinocore.benchmark import CORRECTED, Case
from dinocore.errors import EnvironmentFault
from dinocore.model.ops import dispatch
from dinocore.system.device import _WithoutTF32, check_compiler

FAST = ["--preset", "r50-4scale", "--size", "64x96", "--repeats", "2"]


@pytest.mark.parametrize("extra", [[], ["--train", "--objects", "3"], ["--ops", "reference", "--amp", "off"]])
def test_it_measures_what_is_asked_for(dino, settings, extra):
    found = json.loads(dino("benchmark", *FAST, *settings, *extra, "--json").out)
    assert found["parameters"] > 1e6 and found["flops"] > 1e8
    assert 0 < found["latency_p50_s"] <= found["latency_p90_s"] < 60
    assert found["images_per_s"] == pytest.approx(1 / found["latency_p50_s"])
    assert found["peak_memory_mb"] >= 0 and found["threads"] >= 1
    assert (found["train"], found["ops"]) == ("--train" in extra, "reference" if "reference" in extra else "auto")


@pytest.mark.parametrize("extra", [[], ["--train"]])
def test_compile_wraps_the_model_and_the_answer_says_so(dino, settings, extra, monkeypatch):
    """torch.compile is replaced, because it takes minutes."""
    wrapped = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: wrapped.append(model) or model)
    monkeypatch.setattr("dinocore.system.device.check_compiler", lambda *given: None)
    found = json.loads(dino("benchmark", *FAST, *settings, *extra, "--amp", "off", "--compile", "--json").out)
    assert found["compile"] and len(wrapped) == 1


def test_nothing_is_timed_where_compiling_fails(dino, settings, monkeypatch):
    def fail(images, padding):
        raise RuntimeError("g++ was killed")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fail)
    monkeypatch.setattr("dinocore.system.device.check_compiler", lambda *given: None)
    with pytest.warns(UserWarning, match="continuing without it: RuntimeError"):
        done = dino("benchmark", *FAST, *settings, "--compile")
    assert done.code == 5 and "torch.compile does not work here" in done.err


def test_compiling_without_a_compiler_says_what_is_missing(monkeypatch):
    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(EnvironmentFault, match=r"needs a C\+\+ compiler"):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))  # needs no C++ compiler


def test_a_training_step_is_measured_where_the_compiled_form_cannot_run(dino, settings, monkeypatch):
    monkeypatch.setattr(dispatch, "_failed_devices", set())
    monkeypatch.setitem(sys.modules, "dinocore.model.ops.numba.cpu", None)  # makes its import fail
    monkeypatch.delattr("dinocore.model.ops.numba.cpu", raising=False)
    with pytest.warns(UserWarning, match="slow deformable attention on cpu"):
        assert json.loads(dino("benchmark", *FAST, *settings, "--train", "--json").out)["latency_p50_s"] > 0


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="without VNNI, int8 is refused")
def test_products_of_bytes_are_measured_and_counted(dino, settings):
    pytest.importorskip("numba")
    floats, found = (
        json.loads(dino("benchmark", *FAST, *settings, "--precision", name, "--json").out) for name in ("off", "int8")
    )
    assert found["precision"] == "int8" and floats["precision"] == "float32"
    assert found["flops"] == floats["flops"]


@pytest.mark.parametrize("amp", ["off", "auto"])
def test_float32_is_profiled_without_tf32(tmp_path, monkeypatch, amp):
    seen = []
    monkeypatch.setattr("dinocore.system.device._without_tf32", _WithoutTF32())  # the shared one may be in use
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    def call():
        seen.append(torch.backends.cudnn.allow_tf32)

    monkeypatch.setattr(benchmark, "prepare", lambda case: (call, None))
    case = Case(load_config("tiny"), (32, 32), 1, False, "auto", amp, torch.device("cpu"), 1, 1)
    benchmark.profile(case, tmp_path / "trace.json")
    assert seen == 2 * [amp == "auto"]


@pytest.mark.parametrize("extra", [["--train"], ["--ops", "reference"]])
def test_int8_is_for_inference_with_our_own_operations(dino, extra):
    result = dino("benchmark", *FAST, "--amp", "int8", *extra)
    assert result.code == 2 and "int8 only works for inference" in result.err


def test_our_operation_is_counted(dino, settings):
    pytest.importorskip("numba")

    def flops(*extra):
        return json.loads(dino("benchmark", *FAST, *settings, "--json", *extra).out)["flops"]

    ours, reference = flops(), flops("--ops", "reference")  # torch's counter has no formula for grid_sample
    assert 1.001 * reference < ours < 1.2 * reference  # prepacked layers count like the layers they replace


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_costs_twice_as_much_backwards_whatever_its_groups(groups):
    conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    x = torch.randn(1, 8, 10, 12, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as forward:
        y = conv(x)
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 2 * (8 * 10 * 12) * (8 // groups * 9)
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_attention_between_queries_is_counted_on_a_cpu():
    q, k, v = (torch.randn(2, 4, 10, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as forward:
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert forward.get_total_flops() == 2 * (2 * 2 * 4 * 10 * 10 * 8)  # attention scores, and weighted sum of values
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as backward:
        attended.sum().backward()
    assert backward.get_total_flops() >= 2 * forward.get_total_flops()


def test_a_profile_is_written_and_its_operations_listed(dino, settings, tmp_path):
    pytest.importorskip("numba")
    found = json.loads(dino("benchmark", *FAST, *settings, "--profile", "new/trace.json", "--json").out)
    assert "traceEvents" in json.loads((tmp_path / "new" / "trace.json").read_text())
    assert any("sample_fused" in operation["name"] for operation in found["operations"])


@pytest.mark.parametrize(
    "arguments, code",
    [(["--size", "big"], 2), (["--ops", "fast"], 2), (["--device", "cuda"], 5), (["--size", "0x9"], 2)],
)
def test_wrong_arguments(dino, arguments, code):
    assert dino("benchmark", *arguments).code == code


@pytest.mark.parametrize("command", ["benchmark", "inspect-mask"])
def test_a_preset_beside_weights_is_refused(dino, command):
    result = dino(command, "--preset", "tiny", "--weights", "bundled")
    assert result.code == 2 and "--preset and --weights both set the model" in result.err
