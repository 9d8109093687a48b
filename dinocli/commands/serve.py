from typing import Annotated

import typer

from ..options import Amp, Device, Weights


def serve(
    weights: Weights = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Most images of one shape at once.")] = 16,
    max_requests: Annotated[int, typer.Option(min=1, help="In work or waiting; further ones get 429.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request; then it gets 504.")] = 30,
    max_mb: Annotated[float, typer.Option(min=0.001, help="Of an image file; larger ones get 413.")] = 20,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of an image; larger ones get 413.")] = 50_000_000,
    device: Device = "auto",
    amp: Amp = "auto",
) -> None:
    """Answer images by HTTP: POST /predict, a page at /, /health and /metrics.

    Example: dino serve --weights runs/mine
    """
    from ._serve_work import serve_detector

    limits = {
        "batch_size": batch_size, "requests": max_requests, "seconds": timeout, "bytes": int(max_mb * 2**20),
        "pixels": max_pixels,
    }  # fmt: skip
    serve_detector(weights, host, port, limits, device, amp)
