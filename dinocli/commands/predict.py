import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..options import Amp, Device, Json, Out, Weights


def predict(
    files: Annotated[
        list[str], typer.Argument(help="Images, folders, globs, - for standard input, or one film, camera or stream.")
    ],
    out: Out = None,
    weights: Weights = None,
    threshold: Annotated[float, typer.Option("--threshold", "--conf", min=0, max=1, help="Least score shown.")] = 0.3,
    max_dets: Annotated[int, typer.Option(min=1, help="Most detections per image; with --slice, per slice.")] = 300,
    format: Annotated[
        str,
        typer.Option(help="Of --out: json, jsonl, coco, csv, yolo or labelme; auto: by the suffix of --out, or json."),
    ] = "auto",
    save_images: Annotated[Path | None, typer.Option(help="Folder for pictures with the boxes drawn in.")] = None,
    batch_size: Annotated[str, typer.Option(help="Most images of one shape at once, or auto.")] = "auto",
    slice: Annotated[
        str | None,
        typer.Option(
            "--slice", metavar="PIXELS", help="Cut large images into slices of so many pixels a side; or auto."
        ),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Of neighbouring slices, as a fraction of their side.")] = 0.2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an --out that an interrupt left.")] = False,
    gpus: Annotated[
        int, typer.Option(min=1, help="Ranks that share the images, one per GPU; with --device cpu, on the CPU.")
    ] = 1,
    save_video: Annotated[
        Path | None, typer.Option(metavar="OUT.mp4", help="Film with the boxes drawn in; of a film only.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Look at every Nth frame of a film.")] = 1,
    start: Annotated[float, typer.Option(min=0, help="Second of a film to begin with.")] = 0,
    end: Annotated[float | None, typer.Option(min=0, help="Second of a film to end before.")] = None,
    track: Annotated[bool, typer.Option("--track", help="Give the objects of a film identities that last.")] = False,
    device: Device = "auto",
    amp: Amp = "auto",
    json: Json = False,
) -> None:
    """Detect objects in images, or in a film."""
    from ..inputs import check_header, is_film

    film = is_film(files)
    if film and (gpus > 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        from dinocore.errors import ConfigError

        raise ConfigError("a film is looked at by one rank; leave --gpus out, or cut it with --start and --end")
    if not film:
        check_header(files)
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        from ..launch import launch

        raise typer.Exit(launch(gpus, sys.argv[1:]))
    from ._predict_work import Wanted, predict_files

    wanted = Wanted(out, format, save_images, threshold, max_dets, resume, json, batch_size, slice, overlap)
    if film:
        from ._predict_film import FilmOptions, predict_film

        predict_film(files[0], wanted, FilmOptions(save_video, every, start, end, track), weights, device, amp)
        return
    if save_video or track or every > 1 or start or end is not None:
        from dinocore.errors import ConfigError

        raise ConfigError(
            "--save-video, --track, --every, --start and --end are for a film, and these are images; leave them out"
        )
    predict_files(files, wanted, weights, device, amp)
