"""The page about one evaluation: every number is the one that `dino eval --json` prints."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...data.coco import Annotations
from ...data.images import read_image
from ...errors import DataError
from ...evaluate.analysis import Analysis
from ...evaluate.answer import to_json
from .parts import Cell, Chart, Facts, Gallery, Line, Mark, Matrix, Page, Part, Picture, Section, Table

SIDE = 1280  # pixels, at most
MOST_CLASSES = 12  # curves in one chart
LEAST = 0.05  # the lowest score of a box in the pictures
ERRORS = {
    "Cls": "right place, wrong class",
    "Loc": "right class, IoU between 0.1 and 0.5",
    "Both": "wrong class and IoU between 0.1 and 0.5, or else unexplained",
    "Dupe": "an object that was found already",
    "Bkg": "no object near",
    "Miss": "an object that nothing found, even badly",
    "FP": "all wrong detections gone",
    "FN": "all missed objects forgiven",
}


def evaluation_page(analysis: Analysis, annotations: Annotations, facts: dict[str, Cell], max_pixels: int) -> Page:
    """Numbers, curves and the worst pictures with prediction and truth.

    Args:
        facts: names and values that stand at the top: weights, data.
        max_pixels: a picture with more is left out, as are those that can't be read.
    """
    answer = to_json(analysis)
    sections = [
        Section("COCO", [Facts("Evaluated", facts), _summary(answer)]),
        Section("Classes", [_classes(answer)]),
        Section("Curves", _curves(answer)),
        Section("Errors", [_tide(answer), _confusion(answer), _lrp(answer)]),
        Section("Calibration", _calibrations(answer)),
        Section("Worst pictures", _worst(analysis, answer, annotations, max_pixels)),
    ]
    return Page("Evaluation", f"{len(analysis.matches.image_ids)} pictures, {answer['objects']} objects", sections)


def _summary(answer: dict[str, Any]) -> Table:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    rows = [[name, _known(answer[name]), *_pair(answer["intervals"].get(name))] for name in names]
    text = "The interval holds 95 % of what other pictures of the same kind would give; see docs/evaluation.md."
    return Table("The 12 numbers", ["number", "value", "from", "to"], rows, text)


def _classes(answer: dict[str, Any]) -> Table:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    columns = ["class", "objects", *names, "AP from", "AP to", "best threshold", "F1", "precision", "recall", "LRP"]
    rows = []
    for name, one in answer["classes"].items():
        best = one["best"] or dict.fromkeys(("threshold", "f1", "precision", "recall"))
        lrp = one["lrp"]["error"] if one["lrp"] else None
        rows.append([name, one["objects"], *(_known(one[key]) for key in names), *_pair(one["interval"]),
                     *best.values(), lrp])  # fmt: skip
    return Table("By class", columns, rows, "F1, precision and recall at IoU 0.5 and the threshold of the greatest F1.")


def _curves(answer: dict[str, Any]) -> list[Part]:
    classes = sorted(answer["classes"].items(), key=lambda item: -item[1]["objects"])[:MOST_CLASSES]
    shown = "" if len(classes) == len(answer["classes"]) else f"The {MOST_CLASSES} classes with the most objects."
    scores, recalls = answer["scores"], answer["recalls"]
    together = [Line(name, recalls, values) for name, values in (answer["precision"] or {}).items()]
    by_class = [Line(name, recalls, one["precision"]["IoU 0.50"]) for name, one in classes if one["precision"]]
    overall = [Line(name, scores, values) for name, values in answer["curves"].items()]
    f1 = [Line(name, scores, one["curves"]["f1"]) for name, one in classes if one["objects"]]
    best = answer["best"]
    text = f"Best threshold for all classes: {best['threshold']:.3g}, F1 {best['f1']:.3g}." if best else ""
    return [
        Chart("Precision and recall", "recall", "precision", together, "Mean over classes."),
        Chart("Precision and recall by class", "recall", "precision", by_class, f"IoU 0.5. {shown}".strip()),
        Chart("Score threshold", "score threshold", "all classes together", overall, f"IoU 0.5. {text}".strip()),
        Chart("F1 by class", "score threshold", "F1", f1, f"IoU 0.5. {shown}".strip()),
    ]


def _tide(answer: dict[str, Any]) -> Table:
    tide = answer["tide"]
    rows = [[name, words, tide["count"][name], tide["gain"][name]] for name, words in ERRORS.items()]
    text = f"How much AP50 ({tide['ap50']:.4g}) would grow without one kind of error (TIDE)."
    return Table("Where AP50 is lost", ["error", "meaning", "count", "dAP"], rows, text)


def _confusion(answer: dict[str, Any]) -> Matrix:
    names = answer["confusion"]["classes"]
    text = f"IoU 0.5, scores from {answer['threshold']:.3g}. Background: no object was there, or none was found."
    return Matrix("Confusion", names, names, answer["confusion"]["counts"], "truth", "found", text)


def _lrp(answer: dict[str, Any]) -> Table:
    rows = [["mean of classes", *answer["lrp"].values(), None]]
    rows += [[name, *one["lrp"].values()] for name, one in answer["classes"].items() if one["lrp"]]
    columns = ["class", "LRP", "localisation", "false positives", "false negatives", "threshold"]
    return Table(
        "Optimal LRP", columns, rows, "0 is perfect, 1 the worst; at the threshold where it is least, IoU 0.5."
    )


def _calibrations(answer: dict[str, Any]) -> list[Part]:
    every, sure = answer["calibration"], answer["calibration_above_threshold"]
    filled = [n for n, count in enumerate(every["count"]) if count]
    lines = [
        Line("detections", [every["score"][n] for n in filled], [every["right"][n] for n in filled]),
        Line("perfect", [0.0, 1.0], [0.0, 1.0]),
    ]
    rows = [list(row) for row in zip(*(every[key] for key in ("bins", "count", "score", "right")), strict=True)]
    errors = {"all detections": every["ece"], f"scores from {answer['threshold']:.3g}": sure["ece"]}
    return [
        Chart("Reliability", "mean score", "share that is right", lines, "IoU 0.5, ten bins of the score."),
        Facts("Expected calibration error", errors),
        Table("Bins", ["score", "detections", "mean score", "share that is right"], rows),
    ]


def _worst(analysis: Analysis, answer: dict[str, Any], annotations: Annotations, max_pixels: int) -> list[Part]:
    indices = {image_id: i for i, image_id in enumerate(annotations.image_ids.tolist())}
    rows, pictures = [], []
    for one in answer["worst"]:
        path = annotations.path(indices[one["image_id"]])
        rows.append([path.name, *one.values()])
        try:
            pictures.append(_picture(analysis, one, path.name, read_image(path, max_pixels)))
        except DataError as error:
            rows[-1][0] = f"{path.name} ({error.what})"
    rule = f"Most wrong detections and missed objects together, at IoU 0.5 and scores from {answer['threshold']:.3g}."
    table = Table("Which they are", ["picture", "id", "right", "wrong", "missed"], rows, rule)
    if not pictures:
        return [table]
    text = (
        f"Boxes with a score of at least {LEAST}. Missed: an object that no detection above the threshold answers for."
    )
    return [Gallery("Prediction beside truth", pictures, analysis.threshold, text), table]


def _picture(analysis: Analysis, one: dict[str, Any], name: str, image: Any) -> Picture:
    scale = min(1.0, SIDE / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    marks = list(_marks(analysis, one["image_id"], (small.width / image.width, small.height / image.height)))
    return Picture(name, small, marks, f"{one['right']} right, {one['wrong']} wrong, {one['missed']} missed")


def _marks(analysis: Analysis, image_id: int, scale: tuple[float, float]) -> Iterable[Mark]:
    """Objects, then detections from the surest on; what is ignored is left out."""
    matches = analysis.matches
    names = [category.name for category in matches.categories]
    found, objects, right = matches.found, matches.objects, matches.right[0, 0]
    picture = int(np.searchsorted(matches.image_ids, image_id))
    hits = np.flatnonzero(right & (found.picture == picture))
    answers = dict(zip(matches.pairs.object[matches.pair[hits]].tolist(), found.score[hits].tolist(), strict=True))
    for n in np.flatnonzero((objects.picture == picture) & ~objects.crowd).tolist():
        kind = "truth" if n in answers else "missed"
        yield Mark(_corners(objects.boxes[n], scale), names[objects.label[n]], kind, answers.get(n))
    use = (found.picture == picture) & ~matches.ignored[0, 0] & (found.score >= LEAST)
    rows = np.flatnonzero(use)
    for n in rows[np.argsort(-found.score[rows], kind="stable")].tolist():
        kind = "found" if right[n] else "wrong"
        yield Mark(_corners(found.boxes[n], scale), names[found.label[n]], kind, float(found.score[n]))


def _corners(box: np.ndarray, scale: tuple[float, float]) -> list[float]:
    x, y, width, height = box.tolist()
    return [x * scale[0], y * scale[1], (x + width) * scale[0], (y + height) * scale[1]]


def _known(value: float) -> float | None:
    return None if value < 0 else value


def _pair(values: Sequence[float] | None) -> Sequence[float | None]:
    return values or (None, None)
