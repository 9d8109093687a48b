"""Counters in Prometheus's text format. Source: https://prometheus.io/docs/instrumenting/exposition_formats/"""

import threading
from bisect import bisect_left
from collections import Counter

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class ServiceMetrics:
    """Counts requests by HTTP status, and their durations."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: Counter[int] = Counter()  # by status
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, status: int, seconds: float) -> None:
        """Count one request to /predict."""
        with self.lock:
            self.requests[status] += 1
            self.buckets[bisect_left(BOUNDS, seconds)] += 1
            self.seconds += seconds

    def unanswered(self) -> int:
        """Number of requests that timed out or were cancelled by the shutdown."""
        return self.requests[503] + self.requests[504]  # without the lock: this is called from a signal handler

    def text(self, gauges: dict[str, float]) -> str:
        """All counters and the given gauges, as Prometheus reads them."""
        with self.lock:
            lines = ["# TYPE dino_requests_total counter"]
            lines += [f'dino_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.requests.items())]
            lines.append("# TYPE dino_request_seconds histogram")
            total = 0
            for bound, count in zip((*BOUNDS, "+Inf"), self.buckets, strict=True):
                total += count
                lines.append(f'dino_request_seconds_bucket{{le="{bound}"}} {total}')
            lines += [f"dino_request_seconds_sum {self.seconds:.6f}", f"dino_request_seconds_count {total}"]
        for name, value in gauges.items():
            lines += [f"# TYPE dino_{name} gauge", f"dino_{name} {value:g}"]
        return "\n".join(lines) + "\n"
