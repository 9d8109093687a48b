"""`dino serve`: run the service with uvicorn; on a signal, it answers pending requests, then stops."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from dinocore.errors import EnvironmentFault
from dinocore.system.extras import install_line
from dinocore.words import counted

from ..console import say
from ..options import Device, Precision, Weights
from ..signals import handling
from ..weights_option import open_detector


def serve(
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines connect.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free port.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Maximum batch of images of the same shape.")] = 16,
    max_requests: Annotated[int, typer.Option(min=1, help="Maximum requests running or waiting; more get 429.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds per request; slower ones get 504.")] = 30,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Maximum image file size in MB; larger ones get 413.")] = 20,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Maximum pixels of an image; larger ones get 413.")
    ] = 50_000_000,
    device: Device = "auto",
    amp: Precision = "auto",
) -> None:
    """Detect objects over HTTP: POST /predict, a page at /, /health and /metrics.

    Example: dino serve --weights runs/mine
    """
    try:
        import uvicorn

        from dinocore.serve.app import Limits, make_app
        from dinocore.serve.connections import timed_connection
    except ImportError as error:
        what = f"`dino serve` needs packages that are not installed: {error.name}"
        raise EnvironmentFault(what, fix=install_line("serve")) from None
    listening = _listen(host, port)
    detector, _ = open_detector(weights, device, amp)
    app = make_app(detector, Limits(batch_size, max_requests, timeout, int(max_mb * 2**20), max_pixels))
    config = uvicorn.Config(
        app, http=timed_connection(timeout), log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=int(timeout) + 1,
    )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    say(f"serving on http://{shown}:{listening.getsockname()[1]} (press Ctrl-C to stop)")
    if host not in ("127.0.0.1", "localhost", "::1"):
        say("anyone who can reach this address can use it; there is no password")

    class Server(uvicorn.Server):
        """Exits with 0 on SIGINT or SIGTERM, after answering the requests in progress."""

        late = 0  # requests that were unanswered before the signal

        def handle_exit(self, sig: int, frame: Any) -> None:
            if not self.should_exit:
                self.late = app.state.service.metrics.unanswered()
            super().handle_exit(sig, frame)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            with handling(self.handle_exit):
                yield

    server = Server(config)
    server.run(sockets=[listening])
    if late := app.state.service.metrics.unanswered() - server.late:
        say(f"ended; {counted(late, 'request')} that {'was' if late == 1 else 'were'} in work got no answer in time")
    else:
        say("stopped; all running requests were answered")


def _listen(host: str, port: int) -> socket.socket:
    """Bind a socket before the weights are loaded, so that an unusable address is reported at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        what = f"cannot listen at {host}, port {port}: {error.strerror or error}"
        raise EnvironmentFault(what, fix="choose another --port, or --port 0 for any free port") from None
    return listening
