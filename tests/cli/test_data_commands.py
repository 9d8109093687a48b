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
def mine(image_folder, tmp_path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "mine"))


def test_check_data_ends_with_0_and_says_what_it_saw(dino, mine):
    result = dino("check-data", mine, "--decode")
    assert result.code == 0 and "0 errors" in result.out and "RBC" in result.out and "COCO layout" in result.err


def test_check_data_strict_html_json_and_fix(dino, mine, tmp_path):
    before = mine / "annotations" / "instances_train2017.json"
    edit(mine, lambda d: d["annotations"][0].update(bbox=[5, 5, 0, 9]))
    assert dino("check-data", mine).code == 0 and dino("check-data", mine, "--strict").code == 3
    edit(mine, lambda d: d["annotations"][1].update(bbox=[5, 5, float("nan"), 9]))
    content = before.read_bytes()
    result = dino("check-data", mine, "--json", "--html", "new/report.html", "--fix", "new/fixed.json")
    found = json.loads(result.out)
    assert result.code == 3 and found["errors"] == 1
    assert {"DATA-BOX-NAN", "DATA-BOX-FLAT"} <= {finding["code"] for finding in found["findings"]}
    assert "DATA-BOX-NAN" in (tmp_path / "new" / "report.html").read_text()
    assert before.read_bytes() == content, "--fix edited the file in place"
    changes = [json.loads(line) for line in (tmp_path / "new" / "fixed.json.log").read_text().splitlines()]
    assert [change["row"] for change in changes] == [0, 1]
    shutil.copy(tmp_path / "new" / "fixed.json", before)
    assert dino("check-data", mine, "--strict").code == 0
    assert dino("check-data", mine, "--fix", before).code == 2


def test_errors_have_one_shape_in_words_and_as_an_object(dino, tmp_path):
    result = dino("check-data", "nowhere", "--json")
    error = json.loads(result.out)["error"]
    assert result.code == error["exit_code"] == 3 and error["code"] == "DATA-FOLDER"
    assert set(error) == {"code", "what", "where", "fix", "exit_code"}
    assert result.err.startswith("error[DATA-FOLDER]: the data folder nowhere does not exist; ")
    usage = dino("check-data", "nowhere", "--decod", "--json")
    error = json.loads(usage.out)["error"]
    assert usage.code == 2 and error["code"] == "USAGE" and "did you mean --decode?" in error["fix"]


def test_an_option_without_its_value_names_the_help_of_its_command(dino):
    for words in (("eval", "--compare", "one"), ("train", "--preset"), ("check-data", "mine", "--decode", "--set")):
        result = dino(*words)
        assert result.code == 2 and result.err.rstrip().endswith(f"; dino {words[0]} --help"), result.err


def test_control_characters_in_names_are_escaped(dino, mine):
    edit(mine, lambda d: d["categories"][0].update(name="\x1b]0;pwned\x07RBC"))
    result = dino("check-data", mine)
    assert r"'\x1b]0;pwned\x07RBC' -> ]0;pwned RBC" in " ".join(result.out.split())
    assert not {"\x1b", "\x07"} & set(result.out + result.err)


def test_a_url_is_refused_and_nothing_is_downloaded(dino):
    result = dino("predict", "https://example.org/a.jpg")
    assert result.code == 5 and "error[DATA-URL]" in result.err


def test_a_wrong_size_is_found_before_the_first_step(dino, mine, settings):
    edit(mine, lambda d: d["images"][0].update(width=50))
    result = dino("train", "--data", mine, "--output-dir", "new", *settings)
    assert result.code == 3 and "DATA-IMAGE-SIZE" in result.err and not Path("new").exists()


def test_inspect_data_draws_what_training_gets_and_draws_it_again(dino, mine, tmp_path):
    first = dino("inspect-data", mine, "--num", 3, "--seed", 5, "--json")
    again = dino("inspect-data", mine, "--num", 3, "--seed", 5, "--out", "b.png", "--json")
    other = dino("inspect-data", mine, "--num", 3, "--seed", 6, "--out", "c.png", "--json")
    one, two, three = (json.loads(result.out)["images"] for result in (first, again, other))
    assert one == two != three and len(one) == 3
    assert (tmp_path / "inspect-data.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    raw = json.loads(dino("inspect-data", mine, "--num", 3, "--seed", 5, "--raw", "--json").out)["images"]
    assert [p["file"] for p in raw] == [p["file"] for p in one] and {p["width"] for p in raw} == {96}
    assert dino("inspect-data", mine, "--out", "a.txt").code == 2


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_convert_data_writes_a_data_set_that_is_found_and_whole(dino, mine, tmp_path, kind):
    result = dino("convert-data", mine, "--to", kind, "out", "--json")
    assert result.code == 0 and json.loads(result.out)["images"] == {"train": 8, "val": 2}
    before = json.loads(dino("check-data", mine, "--json").out)["splits"]["train"]
    after = json.loads(dino("check-data", "out", "--json").out)
    assert after["errors"] == 0 and after["splits"]["train"]["objects"] == before["objects"]
    assert dino("convert-data", mine, "out", "--to", kind).code == 2
    assert dino("convert-data", mine, "else", "--to", "csv").code == 2


# in subprocesses


def run(*arguments, **more):
    return subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, **more)


@pytest.mark.slow
def test_no_home_a_cache_that_cannot_be_written_plain_locale_no_colour_and_a_narrow_terminal(mine, tmp_path):
    (tmp_path / "cache").write_text("")
    odd = {"PATH": os.environ["PATH"], "LANG": "C", "LC_ALL": "C", "NO_COLOR": "1", "COLUMNS": "20", "TERM": "dumb",
           "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}  # fmt: skip
    result = run("check-data", mine, env=odd)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr and "0 errors" in result.stdout
    assert "Traceback" not in result.stderr and "COCO layout" in result.stderr


@pytest.mark.slow
def test_a_reader_that_closes_the_pipe_is_a_quiet_end(mine):
    line = f"'{sys.executable}' -m dinocli check-data '{mine}' --json | head -c 5; echo \"code ${{PIPESTATUS[0]}}\""
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert "code 0" in result.stdout and "Traceback" not in result.stderr and "error" not in result.stderr


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.slow
def test_a_bomb_is_refused_with_little_memory_and_a_link_out_is_not_opened(mine, tmp_path):
    """A 900-megapixel PNG of about 100 kB, and a symlink to a FIFO outside the folder, which would block if opened."""
    head = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(30000 * 3751), 9)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert len(bomb) < 200_000
    image_folder = sorted((mine / "train2017").iterdir())
    image_folder[0].write_bytes(bomb)
    image_folder[1].unlink()
    os.mkfifo(tmp_path / "canary")
    image_folder[1].symlink_to(tmp_path / "canary")
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    code = f"import resource, sys; from dinocli import app\ntry: app.main()\nfinally: print({peak}, file=sys.stderr)"
    imports = f"import dinocli.commands.check_data, resource; print({peak})"
    command = [sys.executable, "-c", code, "check-data", str(mine), "--decode", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    found = {finding["code"] for finding in json.loads(result.stdout)["findings"]}
    assert result.returncode == 3 and {"DATA-IMAGE-LARGE", "DATA-PATH-ESCAPE"} <= found
    before = int(subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, cwd=ROOT).stdout)
    assert (int(result.stderr.split()[-1]) - before) / 1024 < 500, "peak memory in MB, minus that of the imports"


@pytest.mark.slow
def test_the_same_data_as_coco_yolo_and_voc_trains_to_identical_weights(dino, mine, tmp_path, settings):
    from safetensors.torch import load_file

    states = []
    for kind in ("coco", "yolo", "voc"):
        assert dino("convert-data", mine, "--to", kind, kind).code == 0
        result = dino("train", "--preset", "r50-4scale", "--data", kind, "--epochs", 1, "--batch-size", 4,
                      "--output-dir", f"run-{kind}", "--seed", 3, *settings)  # fmt: skip
        assert result.code == 0, result.err
        states.append(load_file(tmp_path / f"run-{kind}" / "best.safetensors"))
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        assert all((states[0][key] == other[key]).all() for key in other)


FAULTS = {
    "none": lambda folder: None,
    "an image of val that is missing": lambda folder: next((folder / "val2017").iterdir()).unlink(),
    "an image that is none": lambda folder: next((folder / "train2017").iterdir()).write_bytes(b"<html>"),
    "a box that is not finite": lambda folder: edit(
        folder, lambda d: d["annotations"][0].update(bbox=[1, 1, 1e999, 9])
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_data_and_a_dry_run_end_with_the_same_code(dino, mine, settings, fault):
    FAULTS[fault](mine)
    checked, tried = dino("check-data", mine), dino("train", "--dry-run", "--data", mine, "--batch-size", 2, *settings)
    assert checked.code == tried.code == (0 if fault == "none" else 3)
