"""An exported file and a copy of runtime.py in an environment without PyTorch."""

import importlib.metadata
import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinocore.export import runtime
from dinocore.export.runtime import ExportedDetector

PACKAGES = {
    "onnx": ["numpy", "Pillow", "onnxruntime"],
    "openvino": ["numpy", "Pillow", "openvino", "openvino-telemetry"],
}
SCRIPT = """
import json, sys
import numpy as np
from runtime import ExportedDetector
assert not {"torch", "dinocore", "torchvision"} & sys.modules.keys()
for name in ("torch", "dinocore"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is installed")
detector = ExportedDetector(sys.argv[1])
results = [detector(path, 0.0) for path in sys.argv[2:]] + detector.detect(sys.argv[2:], 0.0)
print(json.dumps([[x.tolist() for x in row] for row in results]))
"""


def fresh_environment(folder: Path, packages: list[str]) -> Path:
    """Python of a new environment that contains only links to these installed packages; needs no network."""
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    for package in packages:
        distribution = importlib.metadata.distribution(package)
        for name in {Path(file).parts[0] for file in distribution.files or [] if ".." not in str(file)}:
            source = Path(str(distribution.locate_file(name)))
            if source.exists() and not (site / name).exists() and name != "__pycache__":
                (site / name).symlink_to(source.resolve())
    return folder / "env/bin/python"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
@pytest.mark.parametrize("format", PACKAGES)
def test_a_copied_runtime_gives_the_same_results_without_torch(tmp_path, write_onnx, format):
    file = write_onnx()
    if format == "openvino":
        openvino = pytest.importorskip("openvino")
        model = openvino.convert_model(file)
        model.set_rt_info(json.dumps(ExportedDetector(file).info), ["dino"])
        file = tmp_path / "hand.xml"
        openvino.save_model(model, file, compress_to_fp16=False)
    rng = np.random.default_rng()
    images = [tmp_path / f"{k}.png" for k in range(3)]
    for path, size in zip(images, [(70, 90), (200, 50), (31, 140)], strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    (tmp_path / "service").mkdir()
    (tmp_path / "service/runtime.py").write_text(Path(runtime.__file__).read_text())
    python = fresh_environment(tmp_path, PACKAGES[format])
    result = subprocess.run(
        [python, "-c", SCRIPT, file, *images], cwd=tmp_path / "service", capture_output=True, text=True, env={}
    )
    assert result.returncode == 0, result.stderr
    detector = ExportedDetector(file)
    expected = [detector(path, 0.0) for path in images] * 2
    for actual, row in zip(json.loads(result.stdout), expected, strict=True):
        assert len(row.labels)
        for ours, reference in zip(actual, row, strict=True):
            assert np.array(ours) == pytest.approx(reference, abs=1e-4)
