from typing import Annotated

import typer

from .options import Amp, Data, Device, Json, Out, Overrides, Weights


def evaluate(
    weights: Weights = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    out: Out = None,
    device: Device = "auto",
    amp: Amp = "auto",
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Measure COCO's average precision; default: the newest run on the data it was trained with."""
    from .evaluating import evaluate_weights

    evaluate_weights(weights, data, split, out, device, amp, overrides, json)
