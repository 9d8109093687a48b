"""Average precision of exported files compared with their weights, as a table for docs/export.md.

    python benchmarks/export_ap.py --data bccd=DIR --data animals=DIR:150 [--weights bundled] [--docs docs/export.md]

Exports the weights in every format and precision below into --folder (existing files are used as they are), runs
`dino eval` on each in float32 (`--amp off`) and prints a table. With --docs, it also replaces the table between the two
markers in that page. `DIR:150` takes 150 images, evenly spread over the validation split.
"""

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from subset import subset

ROOT = Path(__file__).parent.parent
FILES = {  # file name and options of each export
    "ONNX float32": ("model.onnx", ["--format", "onnx"]),
    "OpenVINO float32": ("model.xml", ["--format", "openvino"]),
    "torch-export float32": ("model.pt2", ["--format", "torch-export"]),
    "aoti float32": ("model-aoti.pt2", ["--format", "aoti"]),
    "ONNX int8": ("model-int8.onnx", ["--format", "onnx", "--precision", "int8"]),
}
MARKS = ("<!-- table: begin -->", "<!-- table: end -->")
ALLOWED = {"float32": 0.1, "int8": 0.3}  # largest allowed loss, in points of AP


def main() -> None:
    """Measure, print, and update a page if one is given; exit code 1 if more AP is lost than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DIR[:N]")
    parser.add_argument("--folder", type=Path, default=Path("export-ap"), help="exported files, kept for the next time")
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    sets = {name: subset(name, where, given.folder) for name, _, where in (item.partition("=") for item in given.data)}
    models = {"PyTorch float32": given.weights} | dict(exported(given.weights, given.folder))
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
    for key, data in sets.items():
        for name, model in models.items():
            rows[name][key] = evaluate(model, data)
            print(f"{name}, {key}: AP {100 * rows[name][key]['AP']:.2f}", file=sys.stderr, flush=True)
    command = "python benchmarks/export_ap.py " + shlex.join(sys.argv[1:])
    text = table(rows, sets, provenance(given.weights, command))
    print(text)
    if given.docs:
        write(given.docs, text)
    sys.exit(any(lost(rows, name, key) > ALLOWED[name.split()[-1]] for name in models for key in sets))


def exported(weights: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The exported files, written unless they exist."""
    for name, (file, options) in FILES.items():
        out = folder / file
        if not out.exists():
            dino("export", weights, "--out", str(out), *options, "--json")
        yield name, str(out)


def evaluate(model: str, data: Path) -> dict[str, float]:
    """The metrics from `dino eval`."""
    return dino("eval", "--weights", model, "--data", str(data), "--amp", "off", "--bootstrap", "0", "--json")


def dino(*arguments: str) -> Any:
    """The output of a command with --json."""
    print("dino", shlex.join(arguments), file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "dinocli", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def lost(rows: dict[str, dict[str, dict[str, float]]], name: str, key: str) -> float:
    """The loss of a file compared with its weights, in points of AP."""
    return round(100 * (rows["PyTorch float32"][key]["AP"] - rows[name][key]["AP"]), 2) + 0.0  # avoids -0.00


def table(rows: dict[str, dict[str, dict[str, float]]], sets: dict[str, Path], note: str) -> str:
    """A Markdown table: a row for each file, with AP and AP50 in percent for each data set."""
    head = " | ".join(f"{key}: AP | AP50 | AP lost" for key in sets)
    lines = [f"| | {head} |", "|---" * (3 * len(sets) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{100 * row[k]['AP']:.2f} | {100 * row[k]['AP50']:.2f} | {lost(rows, name, k):.2f}" for k in sets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", note])


def provenance(weights: str, command: str) -> str:
    """The command, the commit, and the weights."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    file = ROOT / "dinocore/weights/bundled/tiny.safetensors" if weights == "bundled" else Path(weights)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else "a run"
    return f"Measured at commit {commit} with weights {digest} (SHA-256): `{command}`"


def write(page: Path, text: str) -> None:
    """Replace the text between the markers in a page."""
    before, begin, rest = page.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end):
        sys.exit(f"{page} has no lines {MARKS[0]} and {MARKS[1]}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
