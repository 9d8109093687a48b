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
def test_json_has_the_measurements_and_the_options(dino, settings, extra):
    output = json.loads(dino("benchmark", *FAST, *settings, *extra, "--json").out)
    assert output["parameters"] > 1e6 and output["flops"] > 1e8
    assert 0 < output["latency_p50_s"] <= output["latency_p90_s"] < 60
    assert output["images_per_s"] == pytest.approx(1 / output["latency_p50_s"])
    assert output["peak_memory_mb"] >= 0 and output["threads"] >= 1
    assert (output["train"], output["ops"]) == ("--train" in extra, "reference" if "reference" in extra else "auto")


@pytest.mark.parametrize("extra", [[], ["--train"]])
def test_compile_wraps_the_model_and_is_reported(dino, settings, extra, monkeypatch):
    """torch.compile is replaced, because it takes minutes."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(model) or model)
    monkeypatch.setattr("dinocore.system.device.check_compiler", lambda *args: None)
    output = json.loads(dino("benchmark", *FAST, *settings, *extra, "--amp", "off", "--compile", "--json").out)
    assert output["compile"] and len(compiled) == 1


def test_benchmark_fails_if_compilation_fails(dino, settings, monkeypatch):
    def fail(images, padding):
        raise RuntimeError("g++ was killed")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fail)
    monkeypatch.setattr("dinocore.system.device.check_compiler", lambda *args: None)
    with pytest.warns(UserWarning, match="continuing without it: RuntimeError"):
        result = dino("benchmark", *FAST, *settings, "--compile")
    assert result.code == 5 and "torch.compile does not work here" in result.err


def test_a_missing_cpp_compiler_is_reported(monkeypatch):
    def fail():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", fail)
    with pytest.raises(EnvironmentFault, match=r"needs a C\+\+ compiler"):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))  # needs no C++ compiler


def test_a_training_step_is_measured_without_the_numba_kernel(dino, settings, monkeypatch):
    monkeypatch.setattr(dispatch, "_failed_devices", set())
    monkeypatch.setitem(sys.modules, "dinocore.model.ops.numba.cpu", None)  # makes its import fail
    monkeypatch.delattr("dinocore.model.ops.numba.cpu", raising=False)
    with pytest.warns(UserWarning, match="slow deformable attention on cpu"):
        assert json.loads(dino("benchmark", *FAST, *settings, "--train", "--json").out)["latency_p50_s"] > 0


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="int8 needs VNNI")
def test_int8_is_measured_and_its_flops_are_counted(dino, settings):
    pytest.importorskip("numba")
    float32, int8 = (
        json.loads(dino("benchmark", *FAST, *settings, "--precision", name, "--json").out) for name in ("off", "int8")
    )
    assert int8["precision"] == "int8" and float32["precision"] == "float32"
    assert int8["flops"] == float32["flops"]


@pytest.mark.parametrize("amp", ["off", "auto"])
def test_float32_is_profiled_without_tf32(tmp_path, monkeypatch, amp):
    tf32_allowed = []
    monkeypatch.setattr("dinocore.system.device._without_tf32", _WithoutTF32())  # the shared one may be in use
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    def call():
        tf32_allowed.append(torch.backends.cudnn.allow_tf32)

    monkeypatch.setattr(benchmark, "prepare", lambda case: (call, None))
    case = Case(load_config("tiny"), (32, 32), 1, False, "auto", amp, torch.device("cpu"), 1, 1)
    benchmark.profile(case, tmp_path / "trace.json")
    assert tf32_allowed == 2 * [amp == "auto"]


@pytest.mark.parametrize("extra", [["--train"], ["--ops", "reference"]])
def test_int8_is_refused_for_training_and_for_reference_operations(dino, extra):
    result = dino("benchmark", *FAST, "--amp", "int8", *extra)
    assert result.code == 2 and "int8 only works for inference" in result.err


def test_flops_of_our_deformable_attention_are_counted(dino, settings):
    pytest.importorskip("numba")

    def flops(*extra):
        return json.loads(dino("benchmark", *FAST, *settings, "--json", *extra).out)["flops"]

    ours, reference = flops(), flops("--ops", "reference")  # torch's counter has no formula for grid_sample
    assert 1.001 * reference < ours < 1.2 * reference  # prepacked layers count like the layers they replace


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_backward_flops_of_a_convolution_are_twice_the_forward_flops(groups):
    conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    x = torch.randn(1, 8, 10, 12, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as forward:
        y = conv(x)
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == 2 * (8 * 10 * 12) * (8 // groups * 9)
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_flops_of_self_attention_are_counted_on_a_cpu():
    q, k, v = (torch.randn(2, 4, 10, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as forward:
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert forward.get_total_flops() == 2 * (2 * 2 * 4 * 10 * 10 * 8)  # attention scores, and weighted sum of values
    with FlopCounterMode(display=False, custom_mapping=CORRECTED) as backward:
        attended.sum().backward()
    assert backward.get_total_flops() >= 2 * forward.get_total_flops()


def test_a_profile_is_written_and_its_operations_listed(dino, settings, tmp_path):
    pytest.importorskip("numba")
    output = json.loads(dino("benchmark", *FAST, *settings, "--profile", "new/trace.json", "--json").out)
    assert "traceEvents" in json.loads((tmp_path / "new" / "trace.json").read_text())
    assert any("sample_fused" in operation["name"] for operation in output["operations"])


@pytest.mark.parametrize(
    "arguments, code",
    [(["--size", "big"], 2), (["--ops", "fast"], 2), (["--device", "cuda"], 5), (["--size", "0x9"], 2)],
)
def test_invalid_arguments_are_refused(dino, arguments, code):
    assert dino("benchmark", *arguments).code == code


@pytest.mark.parametrize("command", ["benchmark", "inspect-mask"])
def test_preset_and_weights_together_are_refused(dino, command):
    result = dino(command, "--preset", "tiny", "--weights", "bundled")
    assert result.code == 2 and "--preset and --weights both set the model" in result.err
