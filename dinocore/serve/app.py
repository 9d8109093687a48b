"""The HTTP service: POST an image, get the JSON of `dino predict`. It never exposes files of the server."""

import asyncio
import difflib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, NamedTuple

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..data.batch import View, as_batch
from ..data.images import decode_image
from ..data.transforms import to_tensor
from ..detections_io import image_result
from ..errors import DataError, DinoError
from ..predict import Detector
from ..stream.images import prepare
from ..words import counted
from .batcher import Answer, Batcher
from .metrics import ServiceMetrics

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob:; connect-src 'self'"
)
CURL_EXAMPLE = "curl --data-binary @image.jpg http://HOST:PORT/predict"
READ_METHODS = ["GET", "HEAD"]
ROUTES = "POST /predict, GET /, GET /health, GET /metrics"
PARAMETERS = ("threshold", "proposals", "name")  # of /predict
MAX_DECODING = 2  # images decoded at the same time; one may take a hundred times the memory of its file
CODES = {
    400: "SERVE-QUERY", 404: "SERVE-PATH", 405: "SERVE-PATH", 415: "SERVE-FORM",
    413: "SERVE-LARGE", 422: "SERVE-QUERY", 429: "SERVE-BUSY", 500: "BUG", 503: "SERVE-STOPPING", 504: "SERVE-TIME"
}  # fmt: skip


class Limits(NamedTuple):
    """Limits of the service; a request that exceeds one is answered with an error."""

    batch_size: int = 16
    requests: int = 64  # active or queued at the same time; any more get 429
    seconds: float = 30  # for a request, from the end of its headers; then it gets 504
    bytes: int = 20 * 2**20  # of an image file; larger ones get 413
    pixels: int = 50_000_000  # of a decoded image; larger ones get 413


class Refusal(Exception):
    """Ends a request with an HTTP status and an error message."""

    def __init__(self, status: int, what: str, fix: str, code: str = ""):
        super().__init__(what)
        self.status, self.what, self.fix, self.code = status, what, fix, code or CODES[status]

    def response(self) -> JSONResponse:
        """As JSON, in the same format as errors with `--json`."""
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        error = {"code": self.code, "what": self.what, "where": None, "fix": self.fix}
        return JSONResponse({"error": error}, self.status, headers)


class Service:
    """A detector, its queue, and its counters."""

    def __init__(self, detector: Detector, limits: Limits):
        self.limits = limits
        self.detector = detector
        pixels = min(limits.pixels, detector.config.data.max_pixels)
        self.data = detector.config.data.model_copy(update={"max_pixels": pixels})
        side = self.data.eval_scale
        warm_up = View(torch.zeros(3, side, side, dtype=torch.uint8), (side, side))
        detector.detect_batch(as_batch([warm_up]))  # compiles the kernels
        self.batcher = Batcher(detector, limits.batch_size)
        self.metrics = ServiceMetrics()
        self.decoding = asyncio.Semaphore(MAX_DECODING)
        self.active = 0

    async def answer(self, request: Request) -> Response:
        """The response to one image; errors become error responses."""
        started = time.monotonic()
        try:
            response = await self._respond(request)
        except Refusal as refusal:
            response = refusal.response()
        except ClientDisconnect:  # only for the metrics; 499 is nginx's status for this
            response = Response(status_code=499)
        except asyncio.CancelledError:  # the service is shutting down
            self.metrics.add(503, time.monotonic() - started)
            raise
        except DataError as error:
            large = error.code == "DATA-IMAGE-LARGE"
            response = Refusal(413 if large else 415, error.what, error.fix, error.code).response()
        except DinoError as error:
            response = Refusal(500, error.what, error.fix, error.code).response()
        except Exception as error:  # must not stop the service; the reason is logged, not sent to the client
            import logging

            logging.getLogger("dinocore.serve").error("a request failed: %s: %s", type(error).__name__, error)
            response = Refusal(500, "the detector failed on this image", "see the log of the service").response()
        self.metrics.add(response.status_code, time.monotonic() - started)
        return response

    async def _respond(self, request: Request) -> Response:
        """Answer a request within the limits on concurrent requests and time."""
        if self.active >= self.limits.requests:
            raise Refusal(429, f"{counted(self.active, 'request')} already running", "send it again in a second")
        self.active += 1
        try:
            threshold, proposals, name = _query(request)
            view, answer = await asyncio.wait_for(self._detect(request), self.limits.seconds)
        except TimeoutError:
            raise Refusal(504, f"it took more than {self.limits.seconds:g} s", "send it again, or smaller") from None
        finally:
            self.active -= 1
        categories = self.detector.categories
        thresholds = self.detector.least_scores() if threshold is None else [threshold] * len(categories)
        row: dict[str, Any] = image_result(name, view.size, answer.detections, categories, thresholds)._asdict()
        if proposals:
            row["proposals"] = [
                {"score": round(score, 6), "box_xyxy": [round(value, 2) for value in box]}
                for score, box in answer.proposals[:proposals]
            ]
        return JSONResponse(row)

    async def _detect(self, request: Request) -> tuple[View, Answer]:
        content = await self._body(request)
        async with self.decoding:
            view = await asyncio.to_thread(self._view, content)
        del content
        return view, await asyncio.wrap_future(self.batcher.submit(view))

    async def _body(self, request: Request) -> bytes:
        """The request's body; reading stops as soon as it exceeds the limit."""
        max_bytes = self.limits.bytes
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise Refusal(415, "the body is a form, but must be the bytes of a single image", CURL_EXAMPLE)
        parts, size = [], 0
        length = request.headers.get("content-length", "")
        too_large = length.isdecimal() and int(length) > max_bytes
        if not too_large:
            async for part in request.stream():
                size += len(part)
                if too_large := size > max_bytes:
                    break
                parts.append(part)
        if too_large:
            raise Refusal(413, f"the image has more than {max_bytes} bytes", "send a smaller file")
        if not size:
            raise Refusal(422, "the request has no body; send the bytes of a single image", CURL_EXAMPLE)
        return b"".join(parts)

    def _view(self, content: bytes) -> View:
        image = decode_image(content, self.data)
        return next(prepare(to_tensor(image), self.data).views(self.data))


def _query(request: Request) -> tuple[float | None, int, str]:
    """Threshold (None: that of the weights), number of proposals, and image name, from the URL's query string."""
    query = request.query_params
    _check_names([name for name, _ in query.multi_items()])
    try:
        text = query.get("threshold")
        threshold = None if text is None else float(text)
        proposals = int(query.get("proposals", "0"))
    except ValueError:
        threshold, proposals = -1.0, 0
    if not ((threshold is None or 0 <= threshold <= 1) and 0 <= proposals <= 100):
        raise Refusal(422, "threshold must be from 0 to 1, and proposals from 0 to 100", "?threshold=0.3")
    return threshold, proposals, query.get("name", "-")[:255]


def _check_names(names: list[str]) -> None:
    """Reject parameters that would otherwise be silently ignored."""
    if unknown := [name for name in names if name not in PARAMETERS]:
        close = difflib.get_close_matches(unknown[0], PARAMETERS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise Refusal(422, f"unknown parameter {unknown[0][:50]}{hint}", f"the parameters are {', '.join(PARAMETERS)}")
    if repeated := [name for name in PARAMETERS if names.count(name) > 1]:
        raise Refusal(422, f"{repeated[0]} is given more than once", f"give {repeated[0]} once")


def make_app(detector: Detector, limits: Limits) -> FastAPI:
    """An ASGI application that serves a detector.

    Routes: `POST /predict`, `GET /` (a page), `GET /health`, `GET /metrics`.
    """
    service = Service(detector, limits)
    page = files("dinocore.serve").joinpath("page.html").read_text(encoding="utf-8")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.stop)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.service = service

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        """Errors of the framework, such as 404, in the format of all other errors."""
        what = {404: "nothing at this address", 405: f"{request.method} is not supported here"}
        refusal = Refusal(error.status_code, what.get(error.status_code, str(error.detail)), f"use {ROUTES}",
                          CODES.get(error.status_code, "SERVE-QUERY"))  # fmt: skip
        response = refusal.response()
        response.headers.update(error.headers or {})
        return response

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        return await service.answer(request)

    @app.api_route("/", methods=READ_METHODS)
    async def show() -> Response:
        return HTMLResponse(
            page, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY, "X-Content-Type-Options": "nosniff"}
        )

    @app.api_route("/health", methods=READ_METHODS)
    async def health() -> Response:
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "the detector has stopped"}, 200 if alive else 503)

    @app.api_route("/metrics", methods=READ_METHODS)
    async def metrics() -> Response:
        gauges: dict[str, float] = {"requests_active": service.active, "batches": service.batcher.batches}
        return PlainTextResponse(service.metrics.text(gauges), media_type="text/plain; version=0.0.4")

    return app
