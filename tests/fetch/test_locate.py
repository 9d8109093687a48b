"""`--weights` accepts names, URLs and files; they are downloaded, checked, converted and cached once."""

import io
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import torch

from dinocore.errors import CheckpointError, ConfigError, EnvironmentFault
from dinocore.presets import list_presets, load_config
from dinocore.weights.convert import files
from dinocore.weights.convert.info import describe
from dinocore.weights.fetch import locate as module
from dinocore.weights.fetch.catalogue import Published, catalogue
from dinocore.weights.fetch.locate import locate
from dinocore.weights.file import load_weights
from dinocore.weights.shipped import BUNDLED

from .conftest import HubHandler, sha256


@pytest.fixture
def publish(monkeypatch, server, official_bytes, small_preset, known_model):
    """A function that adds `mmdet/small` to the catalogue, with the correct hash unless another is given."""
    server.content = official_bytes

    def make(digest=None, preset=str(small_preset)):
        digest = sha256(official_bytes)[:8] if digest is None else digest
        entry = Published.model_construct(
            name="mmdet/small", preset=preset, ap=1.0, about="", address=server.address(), sha256=digest, file=""
        )
        monkeypatch.setattr(module, "find", lambda name: entry if name == "mmdet/small" else None)
        return entry

    return make


def test_a_published_name_is_downloaded_verified_converted_and_cached(publish, server, messages):
    publish()
    path = locate("mmdet/small", messages[0])
    weights = load_weights(path)
    assert weights.facts["converted_from"]["address"] == server.address() and len(weights.categories) == 91
    assert [line.split()[0] for line in messages[1]] == ["downloading", "converted"]
    assert locate("mmdet/small", messages[0]) == path and len(server.requests) == 1 and len(messages[1]) == 2


def test_offline_cached_weights_are_used_and_no_request_is_sent(publish, server, monkeypatch):
    publish()
    monkeypatch.setenv("DINO_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match="DINO_OFFLINE is set, and mmdet/small is not in "):
        locate("mmdet/small")
    assert server.requests == []
    monkeypatch.setenv("DINO_OFFLINE", "0")
    path = locate("mmdet/small")
    monkeypatch.setenv("DINO_OFFLINE", "1")
    server.http.shutdown()
    assert locate("mmdet/small") == path


def test_a_file_with_a_wrong_hash_is_refused_and_deleted(publish, tmp_path):
    publish("00000000")
    with pytest.raises(CheckpointError, match=r"whose sha256 starts with .* published 00000000; the file was deleted"):
        locate("mmdet/small")
    assert cached_files(tmp_path) == []


def test_a_partial_download_of_another_file_is_detected_by_its_hash(publish, server, official_bytes):
    """The ETag stays the same although the content changes."""
    publish()
    server.content, server.plan = b"x" * len(official_bytes), ["cut 100", *["404"]]
    with pytest.raises(EnvironmentFault):
        locate("mmdet/small")
    server.content = official_bytes
    assert load_weights(locate("mmdet/small")).config.model.num_queries == 12


def test_a_file_that_is_not_weights_is_refused_and_deleted(publish, server, tmp_path, official_bytes):
    publish("")
    server.content = b"\x00" * 5000
    with pytest.raises(CheckpointError, match="is not a weights file; it was deleted"):
        locate("mmdet/small")
    assert cached_files(tmp_path) == []
    server.content = official_bytes
    assert locate("mmdet/small").is_file()


@pytest.mark.parametrize("get", [locate, module.original])
@pytest.mark.parametrize("length", [0, 5000])
def test_an_empty_or_truncated_download_is_refused_and_deleted(get, length, server, tmp_path):
    """Like an interrupted download from a server that sends no Content-Length."""
    server.content = BUNDLED.read_bytes()[:length]
    with pytest.raises(CheckpointError, match=r"http://127\.0\.0\.1.*(is empty|not a complete).*; it was deleted"):
        get(server.address("tiny.safetensors"))
    assert cached_files(tmp_path) == []
    server.content = BUNDLED.read_bytes()
    assert get(server.address("tiny.safetensors"))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_in_the_cache_is_detected_and_the_file_downloaded_again(server, messages, monkeypatch):
    server.content, address = BUNDLED.read_bytes(), server.address("tiny.safetensors")
    flip(path := locate(address))
    monkeypatch.setenv("DINO_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match="has changed since it was downloaded, and DINO_OFFLINE is set"):
        locate(address)
    monkeypatch.delenv("DINO_OFFLINE")
    assert locate(address, messages[0]) == path and path.read_bytes() == server.content
    assert "has changed since it was downloaded; downloading them again" in messages[1][0] and len(server.requests) == 2
    assert locate(address) and len(server.requests) == 2


def test_a_flipped_bit_in_a_converted_file_is_detected_and_the_conversion_repeated(publish, server):
    publish()
    flip(path := locate("mmdet/small"))
    flipped = path.read_bytes()
    assert locate("mmdet/small") == path and path.read_bytes() != flipped and len(server.requests) == 1
    assert load_weights(path)


def test_cached_files_of_a_wrong_size_are_replaced(publish, server, tmp_path):
    publish()
    path = locate("mmdet/small")
    path.write_bytes(path.read_bytes()[:100])
    assert load_weights(locate("mmdet/small")) and len(server.requests) == 1
    original = next(tmp_path.rglob("weights.pth"))
    original.write_bytes(b"")
    path.unlink()
    assert load_weights(locate("mmdet/small")) and len(server.requests) == 2


def test_a_newer_converter_converts_again(publish, monkeypatch):
    publish()
    old = locate("mmdet/small")
    monkeypatch.setattr(module, "CONVERTER", files.CONVERTER + 1)
    assert locate("mmdet/small") != old


def test_concurrent_calls_download_a_file_once(publish, server):
    publish()
    paths, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: paths.append(locate("mmdet/small"))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1 and len(paths) == 4 and len(server.requests) == 1


def test_a_url_is_accepted_and_our_own_weights_are_not_converted(server, tmp_path):
    server.content = BUNDLED.read_bytes()
    path = locate(server.address("tiny.safetensors?token=secret"))
    assert path.read_bytes() == server.content and path.is_relative_to(tmp_path / "cache" / "web")
    assert not (tmp_path / "cache" / "converted").exists()


def test_a_download_of_an_unknown_model_is_refused_with_the_convert_command(server, official_bytes):
    server.content = official_bytes
    with pytest.raises(ConfigError, match=r"published no such model.*dino convert http://127\.0\.0\.1"):
        locate(server.address())


def test_official_files_must_be_downloaded_manually():
    with pytest.raises(EnvironmentFault, match=r"drive\.google\.com.* then: dino convert checkpoint0023_4scale\.pth"):
        locate("official/r50-4scale-24e")


def test_paths_runs_and_the_bundled_model_are_located(tmp_path):
    assert locate("bundled") == BUNDLED
    (tmp_path / "best.safetensors").write_bytes(b"x")
    assert locate(tmp_path) == locate(tmp_path / "best.safetensors") == tmp_path / "best.safetensors"
    with pytest.raises(CheckpointError, match=r"this file does not exist; did you mean mmdet/r50-4scale-12e"):
        locate("mmdet/r50-4scale-12")


@pytest.mark.parametrize("cache", ["file", "/proc/none"])
def test_a_cache_that_cannot_be_written_is_a_one_line_error(cache, publish, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / cache))
    publish()
    with pytest.raises(EnvironmentFault, match=r"cannot be written: .*set DINO_CACHE") as caught:
        locate("mmdet/small")
    assert "\n" not in str(caught.value)


def test_the_cache_follows_the_xdg_directories(monkeypatch, tmp_path):
    monkeypatch.delenv("DINO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.cache_folder() == tmp_path / "dino"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert module.cache_folder() == Path("/home/me/.cache/dino")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(EnvironmentFault, match="no home folder"):
        module.cache_folder()


def test_the_catalogue_is_consistent():
    known = catalogue()
    assert {entry.codebase for entry in known.weights} == set(known.publishers) == {"official", "detrex", "mmdet"}
    for entry in known.weights:
        assert entry.preset.startswith("" if entry.codebase == "official" else f"{entry.codebase}-")
        assert not entry.sha256 or entry.address.endswith(f"-{entry.sha256}.pth"), "the file name contains the hash"
    assert len({entry.address for entry in known.weights if entry.address}) == 37


@pytest.mark.parametrize("entry", catalogue().weights, ids=lambda entry: entry.name)
def test_every_published_checkpoint_has_its_preset(entry):
    assert entry.preset in list_presets()
    assert load_config(entry.preset).model.num_classes == (91 if entry.codebase == "official" else 80)


HUB_SCRIPT = """
import sys
from dinocore.weights.fetch.hub import fetch_from_hub
from dinocore.weights.fetch.watch import UNWATCHED
from dinocore.errors import DinoError
for name in sys.argv[1:]:
    try:
        print(fetch_from_hub(name, UNWATCHED).read_bytes().decode())
    except DinoError as error:
        print(error.exit_code, error)
"""


def test_hub_files_are_downloaded_with_the_hubs_own_client(hub, tmp_path):
    """Run in a separate process, because huggingface_hub reads its settings on import."""

    def run(*names, **variables):
        command = [sys.executable, "-c", HUB_SCRIPT, *names]
        result = subprocess.run(command, env=os.environ | hub | variables, capture_output=True, text=True, check=True,
                                timeout=300)  # fmt: skip
        return result.stdout.splitlines()

    lines = run("hf:us/one", "hf:us/one/a/model.safetensors@v1", "hf:us/two", "hf:us/none", "hf:us")
    assert lines[:2] == ["main:model", "v1:a/model"]
    assert lines[2].startswith("2 ") and "hf:us/two/a.safetensors, hf:us/two/b.safetensors" in lines[2]
    assert lines[3].startswith("5 hf:us/none could not be downloaded") and lines[4].startswith(
        "2 hf:us is not a valid hub name"
    )
    offline = run("hf:us/one", "hf:us/two/a.safetensors", DINO_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline[0] == "main:model" and offline[1].startswith("5 ") and "DINO_OFFLINE" in offline[1]


def cached_files(tmp_path):
    cache = tmp_path / "cache"
    return [file.name for file in cache.rglob("*") if file.is_file() and not file.name.endswith(".lock")]


def test_hub_names_are_parsed():
    from dinocore.weights.fetch.hub import HubFile, choose, parse

    assert parse("hf:a/b") == HubFile("a/b", None, None)
    assert parse("hf:a/b/c/d.pth@refs/pr/1") == HubFile("a/b", "c/d.pth", "refs/pr/1")
    assert choose(["x.pth", "m.safetensors", "README.md"], "hf:a/b") == "m.safetensors"
    for invalid in ("hf:", "hf:a", "hf:a//c", "hf:a/b@"):
        with pytest.raises(ConfigError, match="write hf:org/name"):
            parse(invalid)


LOCATE_SCRIPT = """
import sys
import dinocore.weights.fetch.locate as module
from dinocore.weights.convert import known
from dinocore.weights.fetch.catalogue import catalogue, cached
from dinocore.weights.fetch.watch import UNWATCHED
from dinocore.weights.file import load_weights
known.PUBLISHED[("official", "resnet18", 4)] = {"": sys.argv[1]}
entry = catalogue().weights[0].model_copy(update={"preset": sys.argv[1]})
module.find = lambda name: entry if name == entry.name else None
before = cached(entry)
path = module.locate(entry.name)
facts = load_weights(path).facts["converted_from"]
print(entry.name, before, cached(entry).name, facts["codebase"], facts["address"], module.locate(entry.name) == path)
"""


@pytest.mark.slow
def test_official_weights_are_fetched_from_the_hub_and_converted(hub, official_bytes, small_preset, tmp_path):
    """Like a mirror's file, with another name and hash and the tensors under `model`."""
    content = torch.load(io.BytesIO(official_bytes), weights_only=False)
    torch.save({"model": content["model"], "names": {"0": "person"}, "size": "r50"}, tmp_path / "mirror.pt")
    HubHandler.BYTES["LibreYOLO/LibreDINODETRr50/mirror.pt"] = (tmp_path / "mirror.pt").read_bytes()
    environment = os.environ | hub | {"DINO_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", LOCATE_SCRIPT, small_preset], env=environment, capture_output=True,
                            text=True, timeout=300)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        "official/r50-4scale-12e", "None", "mirror.pt", "official", "hf:LibreYOLO/LibreDINODETRr50", "True",
    ]  # fmt: skip


def test_a_local_file_of_a_known_codebase_is_converted_automatically(
    official_bytes, known_model, server, tmp_path, messages
):
    file = tmp_path / "theirs.pth"
    file.write_bytes(official_bytes)
    path = locate(file, messages[0])
    assert load_weights(path).facts["converted_from"]["codebase"] == "official" and messages[1] == [
        "converted theirs.pth, once"
    ]
    assert locate(file, messages[0]) == path and len(messages[1]) == 1 and file.read_bytes() == official_bytes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_training_tools_are_removed(prefix, official_bytes, known_model, server, tmp_path):
    state = torch.load(io.BytesIO(official_bytes), weights_only=False)["model"]
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path / "a.pth")
    torch.save({"model": state}, tmp_path / "b.pth")
    a, b = (load_weights(locate(tmp_path / name)).tensors for name in ("a.pth", "b.pth"))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_moving_average_in_the_file_is_reported_and_can_be_selected(
    official_bytes, known_model, server, tmp_path, messages
):
    state = torch.load(io.BytesIO(official_bytes), weights_only=False)["model"]
    averaged = {f"module.{key}": value / 2 if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model": state, "ema_model": averaged}, tmp_path / "a.pth")
    plain = load_weights(locate(tmp_path / "a.pth", messages[0])).tensors
    assert any("moving average" in line and "--ema" in line for line in messages[1])
    messages[1].clear()
    locate((tmp_path / "a.pth").rename(tmp_path / "renamed.pth"), messages[0])
    assert len(messages[1]) == 1 and "renamed.pth --ema" in messages[1][0], "it is cached now, but still reported"
    (tmp_path / "renamed.pth").rename(tmp_path / "a.pth")
    assert describe(tmp_path / "a.pth")["beside_the_model"] == ["ema_model"]
    joined = {f"model.{key}": value for key, value in state.items()} | {f"ema.{key}": v for key, v in state.items()}
    torch.save(joined, tmp_path / "joined.pth")
    assert describe(tmp_path / "joined.pth")["beside_the_model"] == ["ema"]
    conversion = files.convert_file(tmp_path / "a.pth", files.ConversionRequest(ema=True))
    assert not any("ema_model" in note for note in conversion.notes)  # not ignored, because --ema uses it
    chosen = conversion.weights.tensors
    key = "encoder.layers.0.ffn.net.0.weight"
    torch.testing.assert_close(chosen[key], plain[key] / 2)
    torch.save({"model": state}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="it has no moving average; drop --ema"):
        files.convert_file(tmp_path / "b.pth", files.ConversionRequest(ema=True))


def test_a_yolo_file_is_recognised_and_not_executed(tmp_path):
    tasks = types.ModuleType("ultralytics.nn.tasks")
    model_class = type("DetectionModel", (), {"__module__": "ultralytics.nn.tasks"})
    tasks.DetectionModel = model_class
    sys.modules |= {"ultralytics.nn.tasks": tasks, "ultralytics": types.ModuleType("ultralytics")}
    try:
        torch.save({"model": model_class(), "epoch": 1}, tmp_path / "yolo.pt")
    finally:
        for name in ("ultralytics.nn.tasks", "ultralytics"):
            del sys.modules[name]
    with pytest.raises(CheckpointError, match=r"yolo\.pt is a complete YOLO model saved by Ultralytics.*refused"):
        locate(tmp_path / "yolo.pt")
    torch.save({f"model.{n}.conv.weight": torch.zeros(1) for n in range(3)}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="look like those of YOLO, a different detector"):
        locate(tmp_path / "state.pt")
