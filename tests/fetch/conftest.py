"""A local server with scripted faults, and a small model in official DINO's format to serve."""

import argparse
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch

from dinocore import build_model, load_config
from dinocore.weights.convert import known
from dinocore.weights.convert.to_official import official_state
from dinocore.weights.fetch.watch import Watch

SMALL = """
[model]
backbone = "resnet18"
hidden_dim = 32
num_heads = 4
ffn_dim = 48
num_encoder_layers = 1
num_decoder_layers = 2
num_queries = 12
"""


class Server:
    """Serves `content` at every path. Each request follows the next entry of `plan`, and succeeds after the last one.

    Entries: `cut N` closes the connection after N bytes, `stall N` pauses there, `no-range` ignores the Range header,
    `wrong-range` sends another range, a number is a status code, `html` is a web page with status 200.
    """

    def __init__(self):
        self.content, self.etag, self.plan = b"", '"1"', []
        self.requests: list[dict[str, str]] = []
        handler = type("Handler", (Handler,), {"server_of": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def address(self, name: str = "weights.pth") -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server_of: Server

    def do_GET(self):
        owner = self.server_of
        owner.requests.append({"path": self.path, **self.headers})
        action, _, position = (owner.plan.pop(0) if owner.plan else "ok").partition(" ")
        if action == "html":
            self._send(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})
        elif action.isdigit():
            self._send(int(action), b"no", {"Retry-After": "0"})
        else:
            self._send_content(owner, action, position)

    def _send_content(self, owner, action, position):
        start = self._start() if action != "no-range" else 0
        first = max(0, start - 3) if action == "wrong-range" else start
        headers = {"ETag": owner.etag} if owner.etag else {}
        if start:
            headers["Content-Range"] = f"bytes {first}-{len(owner.content) - 1}/{len(owner.content)}"
        self._send(
            206 if start else 200,
            owner.content[first:],
            headers,
            int(position or len(owner.content)),
            action == "stall",
        )

    def _start(self):
        same = self.headers.get("If-Range", self.server_of.etag) == self.server_of.etag
        requested = self.headers.get("Range", "")
        return int(requested.removeprefix("bytes=").split("-")[0]) if requested and same else 0

    def _send(self, status, body, headers, position=None, stall=False):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:position])
        if stall:
            self.wfile.flush()
            time.sleep(1.0)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("http_proxy", "HTTP_PROXY", "DINO_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("DINO_CACHE", str(tmp_path / "cache"))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(scope="session")
def small_preset(tmp_path_factory):
    """The preset of a small model with official DINO's 91 classes."""
    preset = tmp_path_factory.mktemp("preset") / "small.toml"
    preset.write_text(SMALL)
    return preset


@pytest.fixture(scope="session")
def official_bytes(small_preset, tmp_path_factory):
    """The content of a checkpoint of that model in official DINO's format."""
    config = load_config(small_preset)
    torch.manual_seed(0)
    state = official_state(build_model(config.model).state_dict(), config.model)
    file = tmp_path_factory.mktemp("official") / "x.pth"
    torch.save({"model": state, "epoch": 11, "args": argparse.Namespace(pe_temperatureH=20)}, file)
    return file.read_bytes()


@pytest.fixture
def known_model(monkeypatch, small_preset):
    """Adds that model to the list of those published by official DINO."""
    monkeypatch.setitem(known.PUBLISHED, ("official", "resnet18", 4), {"": str(small_preset)})


@pytest.fixture
def messages():
    """A `Watch` and the list of its messages."""
    lines: list[str] = []
    return Watch(lines.append), lines


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    """The part of the hub's API that its client uses, for the repositories us/one and us/two."""

    FILES: ClassVar = {
        "one": ["README.md", "model.safetensors", "a/model.safetensors"],
        "two": ["a.safetensors", "b.safetensors"],
    }

    BYTES: ClassVar[dict[str, bytes]] = {}  # additional files by org/name/file

    def do_GET(self):
        self._answer(self.path.split("?")[0].strip("/").split("/"))

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, parts):
        if parts[:3] == ["api", "models", "us"] and parts[3] in self.FILES:
            files = [{"type": "file", "path": file, "oid": "0" * 40, "size": 9} for file in self.FILES[parts[3]]]
            body = files if "tree" in parts else {"id": f"us/{parts[3]}", "sha": "1" * 40, "siblings": []}
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if len(parts) > 4 and parts[2] == "resolve" and "/".join(parts[4:]) in self.FILES.get(parts[1], []):
            content = f"{parts[3]}:{'/'.join(parts[4:]).removesuffix('.safetensors')}".encode()
            commit = hashlib.sha1(parts[3].encode()).hexdigest()
            return self._send(200, content, {"ETag": f'"{sha256(content)}"', "X-Repo-Commit": commit})
        extra = {name: content for name, content in self.BYTES.items() if name.split("/")[:2] == parts[2:4]}
        if parts[:2] == ["api", "models"] and extra:
            files = [{"type": "file", "path": name.split("/")[2], "oid": "0" * 40, "size": 9} for name in extra]
            body = files if "tree" in parts else {"id": "/".join(parts[2:4]), "sha": "1" * 40, "siblings": files}
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if parts[2:3] == ["resolve"] and (content := self.BYTES.get("/".join([*parts[:2], *parts[4:]]))):
            return self._send(200, content, {"ETag": f'"{sha256(content)}"', "X-Repo-Commit": "1" * 40})
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status, body, headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """Environment variables that direct a process to a local stand-in for the Hugging Face hub."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{http.server_address[1]}", "HF_HOME": str(tmp_path / "hf"),
           "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "DINO_OFFLINE": "", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    http.shutdown()
    http.server_close()
