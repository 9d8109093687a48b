"""The service returns the results of `dino predict`, survives bad requests, and exposes no files."""

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinocore import load_detector
from dinocore.data.synthetic.smear import draw_smear
from dinocore.detections_io import image_result

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def detector():
    detector = load_detector(amp="off")
    detector(np.zeros((120, 160, 3), np.uint8))  # compiles kernels before the time limits apply
    return detector


def encode_image(k=0, size=(160, 120), image_format="PNG"):
    file = io.BytesIO()
    Image.fromarray(draw_smear(9, k, size)[0]).save(file, image_format)
    return file.getvalue()


@pytest.fixture
def service(detector):
    """A function that starts a service and returns a function that sends a request to it."""
    servers = []

    def start(**limits):
        from dinocore.serve.app import Limits, make_app
        from dinocore.serve.connections import timed_connection

        limits = {"seconds": 300} | limits
        listening = socket.create_server(("127.0.0.1", 0))
        app, http_class = make_app(detector, Limits(**limits)), timed_connection(limits["seconds"])
        server = uvicorn.Server(uvicorn.Config(app, http=http_class, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        servers.append((server, thread, listening))

        def send(method="POST", path="/predict", body=b"", headers=None):
            connection = http.client.HTTPConnection(*listening.getsockname(), timeout=400)
            try:
                connection.request(method, path, body, headers or {})
                response = connection.getresponse()
                return response.status, response.read(), dict(response.getheaders())
            finally:
                connection.close()

        send.address = listening.getsockname()
        return send

    yield start
    for server, thread, listening in servers:
        server.should_exit = True
        thread.join()
        listening.close()


def test_the_response_equals_the_row_of_dino_predict(service, detector):
    send = service()
    status, content, _ = send(body=encode_image(), path="/predict?threshold=0.2&name=a.png")
    row = json.loads(content)
    with Image.open(io.BytesIO(encode_image())) as image:
        expected = image_result(
            "a.png", (120, 160), detector(image), detector.categories, [0.2] * len(detector.categories)
        )
    assert status == 200 and list(row) == ["file", "width", "height", "detections"]
    assert (row["file"], row["width"], row["height"]) == ("a.png", 160, 120)
    assert [d["label"] for d in row["detections"]] == [d["label"] for d in expected.detections] != []
    ours, theirs = ([d["box_xyxy"] for d in detections] for detections in (row["detections"], expected.detections))
    assert np.allclose(ours, theirs, atol=0.1)


def test_first_stage_proposals_are_returned_on_request(service):
    row = json.loads(service()(body=encode_image(), path="/predict?proposals=7")[1])
    scores = [p["score"] for p in row["proposals"]]
    assert len(scores) == 7 and scores == sorted(scores, reverse=True)
    assert all(
        0 <= x0 <= x1 <= 160 and 0 <= y0 <= y1 <= 120 for x0, y0, x1, y1 in (p["box_xyxy"] for p in row["proposals"])
    )


def test_bad_requests_get_an_explanation_and_the_right_status(service):
    send = service(bytes=100_000, pixels=100_000)
    wide = encode_image(size=(500, 400))
    for body, path, status in (
        (b"no image", "/predict", 415), (encode_image()[:900], "/predict", 415), (b"", "/predict", 422),
        (bytes(100_001), "/predict", 413), (wide[:100_000], "/predict", 413),
        (encode_image(), "/predict?threshold=2", 422), (encode_image(), "/predict?treshold=0.9", 422),
        (encode_image(), "/predict?name=a&name=b", 422), (encode_image(), "/predict?max-dets=3", 422),
        (encode_image(), "/predict?proposals=x", 422), (encode_image(), "/predict?threshold=nan", 422),
    ):  # fmt: skip
        actual, content, _ = send(body=body, path=path)
        assert actual == status, (path, len(body), content)
        assert json.loads(content)["error"]["what"] and json.loads(content)["error"]["fix"]
    assert send(body=encode_image())[0] == 200, "the service still works"


def test_errors_of_the_framework_have_the_format_of_all_errors(service):
    send = service()
    for method, path, status in (("GET", "/none", 404), ("GET", "/predict", 405), ("POST", "/predict/", 404)):
        actual, content, headers = send(method, path)
        assert actual == status, (path, content)
        assert set(json.loads(content)["error"]) == {"code", "what", "where", "fix"}, (path, content)
        assert "POST /predict" in json.loads(content)["error"]["fix"]
        assert ("allow" in headers) == (status == 405)
    for path in ("/", "/health", "/metrics"):
        assert send("HEAD", path)[:2] == (200, b"")


def test_a_form_upload_is_refused_with_a_working_command(service):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    status, content, _ = service()(body=b"--x\r\n\r\n" + encode_image() + b"\r\n--x--", headers=headers)
    assert status == 415 and "--data-binary @image.jpg" in json.loads(content)["error"]["fix"]


def test_a_client_that_disconnects_during_its_body_is_not_an_error_of_the_service(service, caplog):
    send = service()
    with socket.create_connection(send.address) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        time.sleep(0.3)
    deadline = time.monotonic() + 30
    while b"dino_request_seconds_count 1" not in (text := send("GET", "/metrics")[1]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b'dino_requests_total{status="499"} 1' in text and b'"500"' not in text
    assert "a request failed" not in caplog.text


def test_a_batch_is_limited_in_pixels_and_skips_cancelled_requests(detector, monkeypatch):
    from dinocore.data.batch import View
    from dinocore.serve import batcher

    view = View(torch.zeros(3, 64, 64, dtype=torch.uint8), (64, 64))
    monkeypatch.setattr(batcher, "PIXELS_PER_BATCH", {"cpu": 2 * 64 * 64})
    queue, sizes, release = batcher.Batcher(detector, 16), [], threading.Event()

    def detect(views):
        sizes.append(len(views))
        release.wait(60)
        return [None] * len(views)

    monkeypatch.setattr(queue, "_detect", detect)
    futures = [queue.submit(view) for _ in range(1)]
    while not sizes:
        time.sleep(0.01)
    futures += [queue.submit(view) for _ in range(6)]
    assert futures[2].cancel() and futures[3].cancel(), "as after a timeout"
    release.set()
    queue.stop()
    assert sizes == [1, 2, 2] and sum(future.cancelled() for future in futures) == 2


def send_raw(address, *pieces, pause=0.0):
    """Send pieces with pauses, and return the response and the seconds until the server closes."""
    start_time, content = time.monotonic(), b""
    with socket.create_connection(address, timeout=60) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        except OSError:  # the server closed the connection
            pass
        try:
            while chunk := connection.recv(65536):
                content += chunk
        except ConnectionResetError:
            pass
    return content, time.monotonic() - start_time


def test_a_client_that_sends_its_headers_too_slowly_gets_408_and_is_disconnected(service):
    send = service(seconds=1.5)
    pieces = [b"POST /predict HTTP/1.1\r\nX: ", *[b"a"] * 100]
    content, seconds = send_raw(send.address, *pieces, pause=0.1)
    head, _, body = content.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and json.loads(body)["error"]["code"] == "SERVE-TIME"
    assert 1 < seconds < 15  # sending all pieces takes 10 s; slow machines need a margin
    response, seconds = send_raw(send.address)
    assert response == b"" and 1 < seconds < 15
    assert send("GET", "/health")[0] == 200


def test_a_body_that_continues_after_its_response_does_not_keep_the_connection_open(service):
    send = service(seconds=1.5)
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    content, seconds = send_raw(send.address, head, *[b"a"] * 200, pause=0.1)
    assert content.startswith(b"HTTP/1.1 404 ") and seconds < 15


def test_each_request_on_a_keep_alive_connection_has_its_own_time_limit_for_headers(service):
    send = service(seconds=2.0)
    connection = http.client.HTTPConnection(*send.address, timeout=60)
    for _ in range(3):  # 3 s in total
        connection.request("GET", "/health")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b'{"status":"ok"}')
        time.sleep(1.0)
    connection.close()


def test_a_body_without_content_length_is_cut_off_at_the_limit(service):
    send = service(bytes=100_000)

    def endless():
        for _ in range(200):
            yield bytes(1000)

    try:
        status = send(body=endless())[0]  # chunked, because the length is unknown
    except (BrokenPipeError, ConnectionResetError):
        status = 413  # the service closed the connection during the upload
    assert status == 413 and send(body=encode_image())[0] == 200


def test_too_many_requests_get_429_and_slow_ones_504(service, detector, monkeypatch):
    forward, release = detector.forward, threading.Event()

    def blocked(batch):
        release.wait(300)
        return forward(batch)

    send = service(requests=3, seconds=1.5)  # warms up before `forward` is blocked
    monkeypatch.setattr(detector, "forward", blocked)
    try:
        with ThreadPoolExecutor(8) as pool:
            statuses = [result[0] for result in pool.map(lambda _: send(body=encode_image()), range(8))]
    finally:
        release.set()
    assert set(statuses) == {429, 504} and statuses.count(504) >= 3
    assert any(send(body=encode_image())[0] == 200 for _ in range(40)), "the service still works"


def active(send):
    return int(re.search(r"dino_requests_active (\d+)", send("GET", "/metrics")[1].decode())[1])


def test_waiting_requests_are_batched(service, detector, monkeypatch):
    forward, sizes, release = detector.forward, [], threading.Event()

    def slow(batch):
        sizes.append(len(batch.images))
        if len(sizes) == 1:
            release.wait(300)
        return forward(batch)

    send = service(batch_size=4)
    monkeypatch.setattr(detector, "forward", slow)
    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(send, body=encode_image(k)) for k in range(9)]
        deadline = time.monotonic() + 300
        while active(send) < 9 and time.monotonic() < deadline:  # until all have arrived
            time.sleep(0.1)
        time.sleep(0.5)
        release.set()
        rows = [json.loads(future.result()[1]) for future in futures]
    assert sum(sizes) == 9 and max(sizes) == 4 and len(sizes) <= 4
    monkeypatch.undo()
    for k in (3, 8):
        with Image.open(io.BytesIO(encode_image(k))) as image:
            detections = detector(image)
        thresholds = detections.scores.new_tensor(detector.least_scores())[detections.labels]
        assert len(rows[k]["detections"]) == (detections.scores >= thresholds).sum()


def test_an_image_on_which_the_detector_fails_does_not_affect_the_others(service, detector, monkeypatch):
    forward = detector.forward

    def fail(batch):
        if any(size == (120, 161) for size in batch.sizes):
            raise RuntimeError("/secret/path of the server")
        return forward(batch)

    send = service()
    monkeypatch.setattr(detector, "forward", fail)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda size: send(body=encode_image(size=size)), [(160, 120), (161, 120), (160, 120)]))
    assert [status for status, _, _ in results] == [200, 500, 200]
    assert b"secret" not in results[1][1]


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../etc/passwd", "/%2e%2e/etc/passwd", "/docs", "/openapi.json",
                                  "/page.html", "/static/x", "//etc/passwd", "/predict"])  # fmt: skip
def test_no_file_of_the_server_can_be_read(service, path):
    status, content, _ = service()("GET", path)
    assert status in (404, 405) and b"root:" not in content


def test_health_metrics_and_page(service):
    send = service()
    send(body=encode_image())
    send(body=b"bad")
    assert json.loads(send("GET", "/health")[1]) == {"status": "ok"}
    text = send("GET", "/metrics")[1].decode()
    assert 'dino_requests_total{status="200"} 1\n' in text and 'dino_requests_total{status="415"} 1\n' in text
    assert 'le="+Inf"} 2\n' in text and "dino_request_seconds_count 2\n" in text and "dino_requests_active 0" in text
    assert all(re.fullmatch(r'# TYPE \w+ \w+|\w+(\{\w+="[^"]+"\})? [0-9.e+-]+', line) for line in text.splitlines())
    status, page, headers = send("GET", "/")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(rb'(src|href)="?https?:', page), "the page loads nothing from other hosts"


DROP = """content => {
  const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
PIXELS = """() => { const c = document.getElementById("canvas");
  return Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data); }"""
MOVE = """value => { const slider = document.getElementById("threshold"); slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true })); }"""


@pytest.mark.slow
def test_the_page_shows_a_dropped_image_with_boxes_above_the_threshold_and_proposals(service, detector, browser):
    host, port = service().address
    content = encode_image(size=(320, 240))
    with Image.open(io.BytesIO(content)) as image:
        truth, detections = np.array(image), detector(image)
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: str(port) in request.url or problems.append(request.url))

    def changed_pixels():
        """Pixels of the canvas that differ from the image, (240, 320) bool."""
        pixels = np.array(page.evaluate(PIXELS), np.int64).reshape(240, 320, 4)[..., :3]
        return abs(pixels - truth).max(-1) > 8

    def count(min_score):
        return int((detections.scores >= min_score).sum())

    page.goto(f"http://{host}:{port}/")
    page.evaluate(DROP, base64.b64encode(content).decode())
    page.get_by_text("detections reach 0.30").wait_for(timeout=180_000)
    assert page.locator("#message").inner_text().startswith(f"{count(0.3)} of {count(0.01)} ") and count(0.3) > 3
    changed = changed_pixels()
    for x0, y0, x1, y1 in detections.boxes_xyxy[detections.scores >= 0.3].round().int().tolist():
        x, y = (x0 + x1) // 2, (y0 + y1) // 2
        for u, v in ((x, y0), (x, y1), (x0, y), (x1, y)):  # the middle of each side
            assert changed[max(v - 2, 0) : v + 3, max(u - 2, 0) : u + 3].any(), "a box is not drawn"
    page.evaluate(MOVE, "0.9")
    assert page.locator("#message").inner_text().startswith(f"{count(0.9)} of ") and count(0.9) < count(0.3)
    assert changed_pixels().sum() < changed.sum()
    page.evaluate(MOVE, "1")
    assert not changed_pixels().any(), "only the image"
    page.get_by_label("First stage's proposals").check()
    assert changed_pixels().any(), "proposals are drawn without detections"
    page.evaluate(DROP, base64.b64encode(b"no image").decode())
    page.locator("#message.bad").wait_for(timeout=180_000)
    assert page.evaluate("document.getElementById('canvas').width") == 0, "the previous image is removed"
    page.close()
    assert problems == []


@pytest.mark.slow
def test_a_signal_stops_the_service_after_the_pending_requests(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "dinocli", "serve", "--port", "0", "--weights", "bundled"],
                               stderr=subprocess.PIPE, text=True, cwd=tmp_path)  # fmt: skip
    line = next(line for line in process.stderr if "serving on" in line)
    port = int(re.search(r":(\d+) ", line)[1])

    def send(k):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        try:
            connection.request("POST", "/predict", encode_image(k))
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            assert send(0) == 200
            break
        except ConnectionRefusedError:
            time.sleep(0.2)
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(send, k) for k in range(6)]
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert [future.result() for future in futures] == [200] * 6
    assert process.wait(60) == 0
    process.stderr.close()


@pytest.mark.slow
def test_ten_thousand_requests_including_bad_ones(service, detector):
    """Cached outputs replace the model, so that the load is on the service."""
    send = service()
    good, bad = encode_image(size=(32, 32)), b"bad"
    forward = detector.forward
    cache, model_memory = {}, []

    def resident_mb():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cached_forward(batch):
        key = tuple(batch.images.shape)
        if key not in cache:  # some batch sizes may occur late
            before = resident_mb()
            cache[key] = forward(batch)
            model_memory.append(resident_mb() - before)
        return cache[key]

    detector.forward = cached_forward
    counts: dict[int, int] = {}
    memory, times = [], []

    def send_one(k):
        start_time = time.monotonic()
        status = send(body=bad if k % 10 == 3 else good)[0]
        times.append(time.monotonic() - start_time)
        return status

    try:
        with ThreadPoolExecutor(16) as pool:
            for k in range(0, 10_000, 1000):
                for status in pool.map(send_one, range(k, k + 1000)):
                    counts[status] = counts.get(status, 0) + 1
                memory.append(resident_mb() - sum(model_memory))
    finally:
        del detector.forward
    print(f"p50 {np.percentile(times, 50) * 1e3:.0f} ms, p99 {np.percentile(times, 99) * 1e3:.0f} ms; MB {memory}")
    assert counts == {200: 9000, 415: 1000}
    assert memory[-1] - memory[3] < 40
