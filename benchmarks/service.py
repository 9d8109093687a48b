"""Load test of `dino serve`, including invalid requests: latency percentiles, statuses, and the service's memory.

    python benchmarks/service.py [--requests 10000] [--clients 8] [--weights cells] [--size 320x240] [--json FILE]

Each client sends its next request after the previous response. One in ten bodies is not an image. The service runs in
its own process with its default limits; clients and service share the machine.
"""

import argparse
import http.client
import io
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from turns import write

from dinocore.data.synthetic.smear import draw_smear


def main() -> None:
    """Print the results, and write them to a file if one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--weights", default="cells")
    parser.add_argument("--size", default="320x240", help="width x height of the images")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    bodies = [encoded(k, (width, height)) for k in range(20)]
    command = [sys.executable, "-m", "dinocli", "serve", "--port", "0", "--weights", options.weights]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"serving on .*:(\d+) ", line)))
        wait_for(port)
        row = load(port, process.pid, bodies, options.requests, options.clients)
    finally:
        process.terminate()
        process.wait()
    for key, value in row.items():
        print(f"{key:20}{value}")
    write(options.json, {"clients": options.clients, "size": options.size, "weights": options.weights}, [row])


def encoded(number: int, size: tuple[int, int]) -> bytes:
    """A synthetic image as JPEG."""
    file = io.BytesIO()
    Image.fromarray(draw_smear(0, number, size)[0]).save(file, "JPEG", quality=90)
    return file.getvalue()


def wait_for(port: int) -> None:
    """Wait until the service responds."""
    for _ in range(600):
        try:
            if send(port, b"", "GET", "/health") == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service does not answer")


def send(port: int, body: bytes, method: str = "POST", path: str = "/predict") -> int:
    """Send a request and return its status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def load(port: int, pid: int, bodies: list[bytes], requests: int, clients: int) -> dict[str, object]:
    """Send all requests from concurrent clients."""
    seconds, memory = np.zeros(requests), []

    def one(k: int) -> int:
        begun = time.perf_counter()
        status = send(port, b"no image" if k % 10 == 3 else bodies[k % len(bodies)])
        seconds[k] = time.perf_counter() - begun
        if k % max(1, requests // 20) == 0:
            memory.append(round(resident_mb(pid)))
        return status

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        statuses = Counter(pool.map(one, range(requests)))
    total = time.perf_counter() - begun
    good = [k for k in range(requests) if k % 10 != 3]
    p50, p99 = np.percentile(seconds[good] * 1000, [50, 99]).round(1).tolist()
    return {
        "requests": requests, "statuses": dict(statuses), "p50_ms": p50, "p99_ms": p99,
        "requests_per_second": round(requests / total, 1), "memory_mb": memory,
    }  # fmt: skip


def resident_mb(pid: int) -> float:
    """Resident memory of the service in MB; Linux only."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


if __name__ == "__main__":
    main()
