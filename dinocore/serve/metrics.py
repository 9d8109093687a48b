"""Counters in the text format of Prometheus. Source: https://prometheus.io/docs/instrumenting/exposition_formats/"""

import threading
from bisect import bisect_left
from collections import Counter

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class ServiceMetrics:
    """How many requests had which end, and how long they took."""

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
        """How many requests got no answer in time, or none at all since the service ended."""
        return self.requests[503] + self.requests[504]  # without the lock: a signal's handler asks this

    def text(self, gauges: dict[str, float]) -> str:
        """All of it, and what `gauges` say, as Prometheus reads it."""
        with self.lock:
            lines = ["# TYPE dino_requests_total counter"]
            lines += [f'dino_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.requests.items())]
            lines.append("# TYPE dino_request_seconds histogram")
            so_far = 0
            for bound, number in zip((*BOUNDS, "+Inf"), self.buckets, strict=True):
                so_far += number
                lines.append(f'dino_request_seconds_bucket{{le="{bound}"}} {so_far}')
            lines += [f"dino_request_seconds_sum {self.seconds:.6f}", f"dino_request_seconds_count {so_far}"]
        for name, value in gauges.items():
            lines += [f"# TYPE dino_{name} gauge", f"dino_{name} {value:g}"]
        return "\n".join(lines) + "\n"
