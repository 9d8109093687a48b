"""The report of an evaluation, with the numbers of `dino eval --json`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import DataConfig
from ..data.annotations import Annotations
from ..evaluate.analysis import Analysis, image_errors
from ..evaluate.answer import to_json
from ..words import counted
from .examples import EXAMPLES, MIN_SCORE, Counts, good_and_bad, headline, marked_image, open_images
from .parts import Cell, Chart, Curve, Facts, Gallery, Matrix, Page, Part, Section, Table

MAX_CONFUSED = 40  # classes of a confusion matrix
MAX_CLASSES = 12  # curves in one chart
BOXES = f"Boxes with a score of at least {MIN_SCORE}. Missed: an object that no detection above the threshold matches."
ERRORS = {
    "Cls": "right location, wrong class",
    "Loc": "right class, IoU between 0.1 and 0.5",
    "Both": "wrong class and IoU between 0.1 and 0.5, or else unexplained",
    "Dupe": "a duplicate of a detected object",
    "Bkg": "no object near",
    "Miss": "an object that no detection comes near",
    "FP": "without any wrong detections",
    "FN": "without any missed objects",
}


def evaluation_page(analysis: Analysis, annotations: Annotations, facts: dict[str, Cell], config: DataConfig) -> Page:
    """Metrics, curves and the worst images with predictions and annotations.

    Args:
        facts: names and values shown at the top: weights, data.
        config: how to read images; unreadable ones are skipped.
    """
    answer = to_json(analysis)
    counts = {image_id: Counts(*numbers) for image_id, *numbers in image_errors(analysis.matches, analysis.threshold)}
    sections = [
        Section("Examples", _examples(analysis, counts, annotations, config)),
        Section("COCO", [Facts("Evaluated", facts), _summary(answer)]),
        Section("Classes", [_classes(answer)]),
        Section("Curves", _curves(answer)),
        Section("Errors", [_tide(answer), *confusion("Confusion", answer), _lrp(answer)]),
        Section("Calibration", _calibrations(answer)),
        Section("Worst images", _worst(analysis, answer, annotations, config)),
    ]
    return Page(
        "Evaluation",
        f"{counted(len(analysis.matches.image_ids), 'image')}, {counted(answer['objects'], 'object')}",
        sections,
        headline(counts.values(), analysis.threshold),
    )


def _examples(
    analysis: Analysis, counts: Mapping[int, Counts], annotations: Annotations, config: DataConfig
) -> list[Part]:
    """The best and the worst images, EXAMPLES of each, with their boxes."""
    parts: list[Part] = []
    for title, ids in zip(("Best images", "Worst images"), good_and_bad(counts), strict=True):
        opened = zip(ids, open_images(annotations, ids, config), strict=True)
        shown = [
            marked_image(analysis.matches, image_id, image, name)
            for image_id, (name, image) in opened
            if image is not None
        ]
        if shown:
            parts.append(Gallery(title, shown, analysis.threshold, columns=EXAMPLES))
    return parts


def _summary(answer: dict[str, Any]) -> Table:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    rows = [[name, known(answer[name]), *pair(answer["intervals"].get(name))] for name in names]
    text = "The 95 % interval is for other images of the same kind; see docs/evaluation.md."
    return Table("The 12 metrics", ["number", "value", "from", "to"], rows, text)


def _classes(answer: dict[str, Any]) -> Table:
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
    columns = ["class", "objects", "errors", *names, "AP from", "AP to"]
    columns += ["best threshold", "F1", "precision", "recall", "LRP"]
    rows = []
    errors = _errors(answer)
    for name, one in _by_errors(answer):
        best = one["best"] or dict.fromkeys(("threshold", "f1", "precision", "recall"))
        lrp = one["lrp"]["error"] if one["lrp"] else None
        rows.append([name, one["objects"], errors[name], *(known(one[key]) for key in names),
                     *pair(one["interval"]), *best.values(), lrp])  # fmt: skip
    text = "Sorted by errors (missed or misclassified objects, and false alarms) at scores of at least "
    text += f"{answer['threshold']:.3g}. F1, precision and recall are at IoU 0.5 and the threshold with the best F1."
    return Table("By class", columns, rows, text)


def _errors(answer: dict[str, Any]) -> dict[str, int]:
    """Off-diagonal counts of the confusion matrix by class: its missed or misclassified objects, and false alarms."""
    counts = np.array(answer["confusion"]["counts"])
    wrong = counts.sum(1) - counts.diagonal() + counts[-1]
    return dict(zip(answer["confusion"]["classes"], wrong[:-1].tolist(), strict=False))


def _by_errors(answer: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The classes, most errors first."""
    errors = _errors(answer)
    return sorted(answer["classes"].items(), key=lambda item: -errors[item[0]])


def _curves(answer: dict[str, Any]) -> list[Part]:
    classes = sorted(answer["classes"].items(), key=lambda item: -item[1]["objects"])[:MAX_CLASSES]
    shown = "" if len(classes) == len(answer["classes"]) else f"The {MAX_CLASSES} classes with the most objects."
    scores, recalls = answer["scores"], answer["recalls"]
    together = [Curve(name, recalls, values) for name, values in (answer["precision"] or {}).items()]
    by_class = [Curve(name, recalls, one["precision"]["IoU 0.50"]) for name, one in classes if one["precision"]]
    overall = [Curve(name, scores, values) for name, values in answer["curves"].items()]
    f1 = [Curve(name, scores, one["curves"]["f1"]) for name, one in classes if one["objects"]]
    best = answer["best"]
    text = f"Best overall threshold: {best['threshold']:.3g}, F1 {best['f1']:.3g}." if best else ""
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
    on_crowds = sum(tide["count"][name] for name in ("Cls", "Loc", "Both", "Dupe", "Bkg")) - tide["count"]["FP"]
    if on_crowds:
        text += f" FP excludes the {counted(on_crowds, 'detection')} on crowds, which the kinds of error include."
    return Table("Where AP50 is lost", ["error", "meaning", "count", "dAP"], rows, text)


def confusion(title: str, answer: dict[str, Any]) -> list[Part]:
    """Which class was taken for which: a matrix; with many classes, of the most confused, plus a table."""
    names, counts = answer["confusion"]["classes"], np.array(answer["confusion"]["counts"])
    text = f"IoU 0.5, scores of at least {answer['threshold']:.3g}. Background: no object there, or none detected."
    if len(names) <= MAX_CONFUSED + 1:
        return [Matrix(title, names, names, answer["confusion"]["counts"], "truth", "found", text)]
    rows, columns = _confusions(counts)
    chosen = list(dict.fromkeys(k for pair in zip(rows, columns, strict=True) for k in pair if k < len(names) - 1))
    chosen = [*sorted(chosen[:MAX_CONFUSED]), len(names) - 1]
    chosen_names = [names[k] for k in chosen]
    text += f" The {len(chosen_names) - 1} most confused classes, of {len(names) - 1:,}."
    pairs = [[names[row], names[column], int(counts[row, column])] for row, column in zip(rows, columns, strict=True)]
    order = "Pairs of classes, then pairs with background, most frequent first."
    return [
        Matrix(title, chosen_names, chosen_names, counts[np.ix_(chosen, chosen)].tolist(), "truth", "found", text),
        Table(f"{title}: all pairs", ["truth", "found", "count"], pairs, order),
    ]


def _confusions(counts: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows and columns of non-zero off-diagonal counts, most frequent first; those with background come last."""
    last = len(counts) - 1
    rows, columns = np.nonzero(counts * ~np.eye(len(counts), dtype=bool))
    with_background = (rows == last) | (columns == last)
    order = np.lexsort((-counts[rows, columns], with_background))
    return rows[order].tolist(), columns[order].tolist()


def _lrp(answer: dict[str, Any]) -> Table:
    rows = [["mean of classes", *answer["lrp"].values(), None]]
    rows += [[name, *one["lrp"].values()] for name, one in _by_errors(answer) if one["lrp"]]
    columns = ["class", "LRP", "localisation", "false positives", "false negatives", "threshold"]
    return Table("Optimal LRP", columns, rows, "0 is perfect, 1 is worst; at the threshold that minimises it, IoU 0.5.")


def reliability(answers: dict[str, dict[str, Any]]) -> Chart:
    """A reliability diagram: the fraction of correct detections by score, with a curve for each name."""
    lines = []
    for name, answer in answers.items():
        bins = answer["calibration"]
        filled = [n for n, count in enumerate(bins["count"]) if count]
        lines.append(Curve(name, [bins["score"][n] for n in filled], [bins["right"][n] for n in filled]))
    lines.append(Curve("perfect", [0.0, 1.0], [0.0, 1.0]))
    return Chart("Reliability", "mean score", "fraction correct", lines, "IoU 0.5, ten bins of the score.")


def _calibrations(answer: dict[str, Any]) -> list[Part]:
    overall, above_threshold = answer["calibration"], answer["calibration_above_threshold"]
    rows = [list(row) for row in zip(*(overall[key] for key in ("bins", "count", "score", "right")), strict=True)]
    errors = {"all detections": overall["ece"], f"scores from {answer['threshold']:.3g}": above_threshold["ece"]}
    return [
        reliability({"detections": answer}),
        Facts("Expected calibration error", errors),
        Table("Bins", ["score", "detections", "mean score", "fraction correct"], rows),
    ]


def _worst(analysis: Analysis, answer: dict[str, Any], annotations: Annotations, config: DataConfig) -> list[Part]:
    rows, images = [], []
    opened = open_images(annotations, (one["image_id"] for one in answer["worst"]), config)
    for one, (name, image) in zip(answer["worst"], opened, strict=True):
        rows.append([name, *one.values()])
        if image is not None:
            images.append(marked_image(analysis.matches, one["image_id"], image, name, error_counts(one)))
    rule = f"Most wrong detections plus missed objects, at IoU 0.5 and scores of at least {answer['threshold']:.3g}."
    table = Table("The worst images", ["image", "id", "right", "wrong", "missed"], rows, rule)
    if not images:
        return [table]
    return [Gallery("Predictions and annotations", images, analysis.threshold, BOXES), table]


def error_counts(one: dict[str, Any]) -> str:
    """The numbers of right, wrong and missed boxes in an image, as a text."""
    return f"{one['right']} right, {one['wrong']} wrong, {one['missed']} missed"


def known(value: float | None) -> float | None:
    """None for COCO's -1, which means undefined."""
    return None if value is None or value < 0 else value


def pair(values: Sequence[float] | None) -> Sequence[float | None]:
    """Both ends of an interval; None, None if there is no interval."""
    return values or (None, None)
