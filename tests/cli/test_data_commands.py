"""The data commands, also in unusual environments and with malicious files."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

CLI = [sys.executable, "-m", "dinocli"]
ROOT = Path(__file__).parents[2]


def edit(folder: Path, change) -> None:
    file = folder / "annotations" / "instances_train2017.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


@pytest.fixture
def data(image_folder, tmp_path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "mine"))


def test_check_data_reports_classes_and_layout_and_exits_with_0(dino, data):
    result = dino("check-data", data, "--decode")
    assert result.code == 0 and "0 errors" in result.out and "RBC" in result.out and "COCO layout" in result.err


def test_check_data_strict_html_json_and_fix(dino, data, tmp_path):
    file = data / "annotations" / "instances_train2017.json"
    edit(data, lambda d: d["annotations"][0].update(bbox=[5, 5, 0, 9]))
    assert dino("check-data", data).code == 0 and dino("check-data", data, "--strict").code == 3
    edit(data, lambda d: d["annotations"][1].update(bbox=[5, 5, float("nan"), 9]))
    content = file.read_bytes()
    result = dino("check-data", data, "--json", "--html", "new/report.html", "--fix", "new/fixed.json")
    report = json.loads(result.out)
    assert result.code == 3 and report["errors"] == 1
    assert {"DATA-BOX-NAN", "DATA-BOX-FLAT"} <= {finding["code"] for finding in report["findings"]}
    assert "DATA-BOX-NAN" in (tmp_path / "new" / "report.html").read_text()
    assert file.read_bytes() == content, "--fix edited the file in place"
    changes = [json.loads(line) for line in (tmp_path / "new" / "fixed.json.log").read_text().splitlines()]
    assert [change["row"] for change in changes] == [0, 1]
    shutil.copy(tmp_path / "new" / "fixed.json", file)
    assert dino("check-data", data, "--strict").code == 0
    assert dino("check-data", data, "--fix", file).code == 2


def test_errors_have_the_same_fields_as_text_and_as_json(dino, tmp_path):
    result = dino("check-data", "nowhere", "--json")
    error = json.loads(result.out)["error"]
    assert result.code == error["exit_code"] == 3 and error["code"] == "DATA-FOLDER"
    assert set(error) == {"code", "what", "where", "fix", "exit_code"}
    assert result.err.startswith("error[DATA-FOLDER]: the data folder nowhere does not exist; ")
    usage = dino("check-data", "nowhere", "--decod", "--json")
    error = json.loads(usage.out)["error"]
    assert usage.code == 2 and error["code"] == "USAGE" and "did you mean --decode?" in error["fix"]


def test_an_option_without_a_value_points_to_the_help_of_the_command(dino):
    for arguments in (("eval", "--compare", "one"), ("train", "--preset"), ("check-data", "mine", "--decode", "--set")):
        result = dino(*arguments)
        assert result.code == 2 and result.err.rstrip().endswith(f"; dino {arguments[0]} --help"), result.err


def test_control_characters_in_names_are_escaped(dino, data):
    edit(data, lambda d: d["categories"][0].update(name="\x1b]0;pwned\x07RBC"))
    result = dino("check-data", data)
    assert r"'\x1b]0;pwned\x07RBC' -> ]0;pwned RBC" in " ".join(result.out.split())
    assert not {"\x1b", "\x07"} & set(result.out + result.err)


def test_a_url_is_refused_and_nothing_is_downloaded(dino):
    result = dino("predict", "https://example.org/a.jpg")
    assert result.code == 5 and "error[DATA-URL]" in result.err


def test_a_wrong_size_is_found_before_the_first_step(dino, data, settings):
    edit(data, lambda d: d["images"][0].update(width=50))
    result = dino("train", "--data", data, "--output-dir", "new", *settings)
    assert result.code == 3 and "DATA-IMAGE-SIZE" in result.err and not Path("new").exists()


def test_inspect_data_is_reproducible_for_a_seed(dino, data, tmp_path):
    first = dino("inspect-data", data, "--num", 3, "--seed", 5, "--json")
    again = dino("inspect-data", data, "--num", 3, "--seed", 5, "--out", "b.png", "--json")
    other = dino("inspect-data", data, "--num", 3, "--seed", 6, "--out", "c.png", "--json")
    one, two, three = (json.loads(result.out)["images"] for result in (first, again, other))
    assert one == two != three and len(one) == 3
    assert (tmp_path / "inspect-data.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    raw = json.loads(dino("inspect-data", data, "--num", 3, "--seed", 5, "--raw", "--json").out)["images"]
    assert [p["file"] for p in raw] == [p["file"] for p in one] and {p["width"] for p in raw} == {96}
    assert dino("inspect-data", data, "--out", "a.txt").code == 2


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_convert_data_writes_a_complete_dataset(dino, data, tmp_path, kind):
    result = dino("convert-data", data, "--to", kind, "out", "--json")
    assert result.code == 0 and json.loads(result.out)["images"] == {"train": 8, "val": 2}
    before = json.loads(dino("check-data", data, "--json").out)["splits"]["train"]
    after = json.loads(dino("check-data", "out", "--json").out)
    assert after["errors"] == 0 and after["splits"]["train"]["objects"] == before["objects"]
    assert dino("convert-data", data, "out", "--to", kind).code == 2
    assert dino("convert-data", data, "else", "--to", "csv").code == 2


# in subprocesses


def run(*arguments, **options):
    return subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, **options)


@pytest.mark.slow
def test_check_data_works_without_home_cache_locale_and_colours_in_a_narrow_terminal(data, tmp_path):
    (tmp_path / "cache").write_text("")
    environment = {
        "PATH": os.environ["PATH"], "LANG": "C", "LC_ALL": "C", "NO_COLOR": "1", "COLUMNS": "20", "TERM": "dumb",
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path),
    }  # fmt: skip
    result = run("check-data", data, env=environment)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr and "0 errors" in result.stdout
    assert "Traceback" not in result.stderr and "COCO layout" in result.stderr


@pytest.mark.slow
def test_a_pipe_closed_by_its_reader_is_not_an_error(data):
    line = f"'{sys.executable}' -m dinocli check-data '{data}' --json | head -c 5; echo \"code ${{PIPESTATUS[0]}}\""
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert "code 0" in result.stdout and "Traceback" not in result.stderr and "error" not in result.stderr


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_with_little_memory_and_an_outside_link_is_not_opened(data, tmp_path):
    """A 900-megapixel PNG of about 100 kB, and a symlink to a FIFO outside the folder, which would block if opened."""
    head = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(30000 * 3751), 9)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    assert len(bomb) < 200_000
    files = sorted((data / "train2017").iterdir())
    files[0].write_bytes(bomb)
    files[1].unlink()
    os.mkfifo(tmp_path / "canary")
    files[1].symlink_to(tmp_path / "canary")
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    code = f"import resource, sys; from dinocli import app\ntry: app.main()\nfinally: print({peak}, file=sys.stderr)"
    imports = f"import dinocli.commands.check_data, resource; print({peak})"
    command = [sys.executable, "-c", code, "check-data", str(data), "--decode", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    codes = {finding["code"] for finding in json.loads(result.stdout)["findings"]}
    assert result.returncode == 3 and {"DATA-IMAGE-LARGE", "DATA-PATH-ESCAPE"} <= codes
    baseline = int(subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, cwd=ROOT).stdout)
    assert (int(result.stderr.split()[-1]) - baseline) / 1024 < 500, "peak memory in MB, minus that of the imports"


@pytest.mark.slow
def test_the_same_data_as_coco_yolo_and_voc_trains_to_identical_weights(dino, data, tmp_path, settings):
    from safetensors.torch import load_file

    states = []
    for kind in ("coco", "yolo", "voc"):
        assert dino("convert-data", data, "--to", kind, kind).code == 0
        result = dino("train", "--preset", "r50-4scale", "--data", kind, "--epochs", 1, "--batch-size", 4,
                      "--output-dir", f"run-{kind}", "--seed", 3, *settings)  # fmt: skip
        assert result.code == 0, result.err
        states.append(load_file(tmp_path / f"run-{kind}" / "best.safetensors"))
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        assert all((states[0][key] == other[key]).all() for key in other)


FAULTS = {
    "none": lambda folder: None,
    "a missing validation image": lambda folder: next((folder / "val2017").iterdir()).unlink(),
    "a file that is not an image": lambda folder: next((folder / "train2017").iterdir()).write_bytes(b"<html>"),
    "a box that is not finite": lambda folder: edit(
        folder, lambda d: d["annotations"][0].update(bbox=[1, 1, 1e999, 9])
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_data_and_a_dry_run_exit_with_the_same_code(dino, data, settings, fault):
    FAULTS[fault](data)
    check = dino("check-data", data)
    dry_run = dino("train", "--dry-run", "--data", data, "--batch-size", 2, *settings)
    assert check.code == dry_run.code == (0 if fault == "none" else 3)
