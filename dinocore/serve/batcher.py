"""Batch requests: a single thread runs the detector on queued images, batched by shape."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import torch

from ..boxes import to_xyxy
from ..data.batch import View, as_batch
from ..predict import Detections, Detector
from ..stream.images import PIXELS_PER_BATCH

MAX_PROPOSALS = 100  # per image


class Answer(NamedTuple):
    """The result for one image."""

    detections: Detections
    proposals: list[tuple[float, list[float]]]  # first-stage score and box, xyxy in pixels, best first


class Waiting(NamedTuple):
    """A request in the queue."""

    view: View
    answer: "Future[Answer]"  # cancelled if the client has gone or the request timed out


class Batcher:
    """Runs a detector on queued images in its own thread."""

    def __init__(self, detector: Detector, batch_size: int):
        self.detector = detector
        self.batch_size = batch_size
        self.queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self.batches = 0
        self.thread = threading.Thread(target=self._work, name="detector", daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is still running."""
        return self.thread.is_alive()

    def submit(self, view: View) -> "Future[Answer]":
        """Queue an image."""
        answer: Future[Answer] = Future()
        self.queue.put(Waiting(view, answer))
        return answer

    def stop(self) -> None:
        """Finish the queued requests, then stop."""
        self.queue.put(None)
        self.thread.join()

    def _work(self) -> None:
        running = True
        while running:
            taken = [self.queue.get()]
            while len(taken) < self.batch_size and not self.queue.empty():
                taken.append(self.queue.get())
            running = None not in taken
            groups: dict[torch.Size, list[Waiting]] = {}
            for waiting in taken:
                if waiting is not None:
                    groups.setdefault(waiting.view.image.shape, []).append(waiting)
            for shape, group in groups.items():
                self._answer_in_batches(group, self._limit(shape))

    def _limit(self, shape: Sequence[int]) -> int:
        """Most images of one shape (3, H, W) per batch.

        A batch has no more pixels than one of `dino predict`, so that it stays within the time limit on a slow machine.
        """
        pixels = PIXELS_PER_BATCH.get(self.detector.device.type, PIXELS_PER_BATCH["cpu"])
        return max(1, min(self.batch_size, pixels // (shape[-2] * shape[-1])))

    def _answer_in_batches(self, group: list[Waiting], limit: int) -> None:
        """Process images of one shape, skipping those that were cancelled in the meantime."""
        while group:
            batch: list[Waiting] = []
            while group and len(batch) < limit:
                waiting = group.pop(0)
                if waiting.answer.set_running_or_notify_cancel():
                    batch.append(waiting)
            if batch:
                self._answer(batch)

    def _answer(self, group: list[Waiting]) -> None:
        """Process a batch; if it fails, process its images one by one, so that a bad one does not affect the others."""
        try:
            answers = self._detect([waiting.view for waiting in group])
        except Exception as error:  # of any kind: the service keeps running
            if len(group) == 1:
                group[0].answer.set_exception(error)
                return
            for waiting in group:
                self._answer([waiting])
            return
        for waiting, answer in zip(group, answers, strict=True):
            waiting.answer.set_result(answer)

    def _detect(self, views: list[View]) -> list[Answer]:
        batch = as_batch(views)
        output = self.detector.forward(batch)
        found = self.detector.select(output.final, batch.sizes)
        self.batches += 1
        if output.proposals is None:  # static queries
            return [Answer(detections, []) for detections in found]
        scores = output.proposals.logits.float().sigmoid().amax(-1).cpu()  # (B, N)
        boxes = to_xyxy(output.proposals.boxes.float()).clamp(0, 1).cpu()  # (B, N, 4)
        answers = []
        for i, detections in enumerate(found):
            best = scores[i].topk(min(MAX_PROPOSALS, scores.shape[1]))
            height, width = batch.sizes[i]
            pixels = boxes[i, best.indices] * torch.tensor([width, height] * 2)
            answers.append(Answer(detections, list(zip(best.values.tolist(), pixels.tolist(), strict=True))))
        return answers
