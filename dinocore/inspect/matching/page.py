"""Who took what, and the denoising queries, as one report page."""

from collections.abc import Mapping, Sequence

from PIL import Image

from ...report.page import render_page
from ...report.parts import Cell, Facts, Gallery, Mark, Page, Part, Picture, Section, Table
from ...words import counted
from .matching import Matching, Noisy


def render_matching(
    name: str, picture: Image.Image, figure: Image.Image, seen: Matching, history: Sequence[Mapping[str, Cell]] = ()
) -> str:
    """The figure, the picture with objects and answers, and the tables; numbers as in `Matching.as_dict`.

    Args:
        history: step, kept and instability of the last layer at each checkpoint.
    """
    sections = [
        Section("Match", [
            Gallery("Who took what, at what cost", [Picture(name, figure)], columns=1),
            Gallery("Objects and answers of the last layer", [Picture(name, picture, _marks(seen))], 0.0, columns=2),
            _queries(seen),
            _stages(seen),
        ]),
        Section("Denoising", _denoising(seen)),
    ]  # fmt: skip
    if history:
        rows = [[row["step"], row["kept"], row["instability"]] for row in history]
        told = (
            "Kept: share of the objects whose query is that of the checkpoint before. Instability: queries that differ."
        )
        sections.append(Section("Checkpoints", [Table("Last layer", ["step", "kept", "instability"], rows, told)]))
    return render_page(
        Page(f"Matching: {name}", f"{counted(len(seen.objects), 'object')}, {seen.num_queries} queries", sections)
    )


def _marks(seen: Matching) -> list[Mark]:
    objects = [Mark(thing.box, f"{t} {thing.label}", "truth") for t, thing in enumerate(seen.objects)]
    answers = [Mark(a.box, f"query {a.query}", "found", a.probability) for a in seen.stages[-1].answers]
    return objects + answers


def _queries(seen: Matching) -> Table:
    columns = [{answer.object: answer for answer in stage.answers} for stage in seen.stages]
    rows = []
    for t, thing in enumerate(seen.objects):
        last = columns[-1].get(t)
        taken = [column[t].query if t in column else None for column in columns]
        rows.append([t, thing.label, *taken, last and last.iou, last and last.probability])
    names = [f"query, {stage.name}" for stage in seen.stages]
    return Table("Objects", ["object", "class", *names, "IoU", "probability"], rows, "The last two: of the last layer.")


def _stages(seen: Matching) -> Table:
    keys = ("cost_class", "cost_l1", "cost_giou", "cost", "iou")
    rows = []
    for stage in seen.stages:
        count = max(1, len(stage.answers))
        means = [sum(getattr(answer, key) for answer in stage.answers) / count for key in keys]
        rows.append([stage.name, *means, stage.kept, stage.instability])
    heads = ["stage", "class", "L1", "GIoU", "cost", "IoU", "kept", "instability"]
    return Table("Stages", heads, rows, "Means of the matched pairs, weighted as in the match.")


def _denoising(seen: Matching) -> list[Part]:
    if not seen.noisy:
        return [Facts("", {"denoising": "none in this model"})]
    heads = ["query", "group", "kind", "of object", "starts as", "must answer", "probability", "IoU"]
    told = "Probability and IoU: of the object it was made from, in the last layer."
    return [Table(f"{seen.num_groups} groups", heads, [_noisy(one) for one in seen.noisy], told)]


def _noisy(one: Noisy) -> list[Cell]:
    kind = "positive" if one.positive else "negative"
    return [one.query, one.group, kind, one.object, one.start_label, one.told, one.probability, one.iou]
