"""Imports point one way only, and commands start fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Modules may not import from later layers. A file's layer is the first entry that its path starts with.
LAYERS = [
    "dinocore/__init__", "dinocore/error_codes", "dinocore/errors", "dinocore/system/parent", "dinocore/words",
    "dinocore/system/files", "dinocore/weights/shipped", "dinocore/weights/untrusted",
    "dinocore/config", "dinocore/settings", "dinocore/presets", "dinocore/structures", "dinocore/boxes",
    "dinocore/system", "dinocore/model",
    "dinocore/matching", "dinocore/losses", "dinocore/data", "dinocore/weights/file",
    "dinocore/weights/convert", "dinocore/weights/fetch", "dinocore/weights/backbone", "dinocore/weights",
    "dinocore/stream/slices", "dinocore/stream/images", "dinocore/predict", "dinocore/evaluate",
    "dinocore/detections_io", "dinocore/draw", "dinocore/report", "dinocore/train", "dinocore/inspect",
    "dinocore/export", "dinocore/stream/video", "dinocore/serve", "dinocore/benchmark", "dinocli",
]  # fmt: skip
SOURCES = sorted([*ROOT.glob("dinocore/**/*.py"), *ROOT.glob("dinocli/**/*.py")])


def layer(module: str) -> int:
    return next(i for i, prefix in enumerate(LAYERS) if f"{module}/".startswith((f"{prefix}/", f"{prefix}.")))


def module_path(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def imported_modules(path: Path) -> set[str]:
    """First-party modules that a file imports at runtime, as paths such as `dinocore/boxes`."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text())
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    skipped = {id(node) for block in blocks for node in ast.walk(block)}
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = "/".join([*base, *(node.module.split(".") if node.module else ())])
            modules |= (
                {module} if (ROOT / module).with_suffix(".py").is_file() else {f"{module}/{a.name}" for a in node.names}
            )
    return {m for m in modules if m.startswith(("dinocore/", "dinocli/")) and (ROOT / f"{m}.py").is_file()}


def test_modules_never_import_later_layers():
    offenders = [
        f"{module_path(path)} imports {module}"
        for path in SOURCES
        for module in sorted(imported_modules(path))
        if layer(module) > layer(module_path(path))
    ]
    assert offenders == []


def test_the_core_neither_prints_nor_uses_the_terminal():
    offenders = []
    for path in (path for path in SOURCES if module_path(path).startswith("dinocore")):
        tree = ast.parse(path.read_text())
        modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        offenders += [
            f"{module_path(path)} imports {m}" for m in sorted(modules) if m.split(".")[0] in ("rich", "typer")
        ]
        calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
        offenders += [
            f"{module_path(path)} prints" for call in calls if isinstance(call, ast.Name) and call.id == "print"
        ]
    assert offenders == []


SHOW_HELP = """
import sys
sys.argv = ["dino", "--help"]
from dinocli.app import app
try:
    app()
except SystemExit:
    heavy = {"torch", "torchvision", "numpy", "scipy", "timm", "numba", "PIL", "pycocotools"} & set(sys.modules)
    assert not heavy, heavy
"""


def test_help_imports_nothing_heavy():
    subprocess.run([sys.executable, "-c", SHOW_HELP], cwd=ROOT, check=True, capture_output=True)


LOAD_COMMANDS = """
import sys
from dinocli.app import COMMANDS, load_command
for name in COMMANDS:
    load_command(name)
    assert "torch" not in sys.modules, name
import dinocli.inputs, dinocore.report.data
assert "torch" not in sys.modules
"""


def test_no_command_imports_torch_before_it_runs():
    """Keeps `dino train --help` and completion fast, and checks data without loading PyTorch."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD_COMMANDS], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


RUN_COMMAND = """
import sys
from dinocli.app import console
sys.argv[0] = "dino"
try:
    console()
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("arguments", [
    ["predict", "nosuch.jpg"], ["predict", "text.jpg"], ["predict", "a.jpg", "--weights", "nosuch"],
    ["inspect-proposals", "nosuch.jpg"], ["inspect-attention", "text.jpg"], ["info", "nosuch"],
    ["train", "--data", "nosuch"], ["eval", "--data", "nosuch"], ["inspect-data", "nosuch"], ["check-data", "nosuch"],
    ["inspect-mask", "--data", "nosuch"], ["train", "--preset", "nosuch"], ["benchmark", "--preset", "nosuch"],
], ids=" ".join)  # fmt: skip
def test_missing_paths_are_refused_before_torch_is_imported(tmp_path, monkeypatch, arguments):
    (tmp_path / "text.jpg").write_text("no image")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-c", RUN_COMMAND, *arguments]
    result = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    missing = next(word for word in arguments if word.startswith(("nosuch", "text")))
    assert result.returncode in (2, 3, 4) and missing in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
