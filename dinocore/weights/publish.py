"""A folder for the Hugging Face hub: weights that `--weights` reads, and a model card with measured metrics.

    README.md           the model card: metrics as `model-index`, which the hub shows, and as tables
    model.safetensors   the weights with settings and classes, without local paths
    config.json         settings and classes for people and tools that don't open the weights

Format of the card: https://huggingface.co/docs/hub/model-cards
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..data.split import table_names
from ..errors import ConfigError, DataError, EnvironmentFault
from ..presets import config_from_dict
from ..system.extras import install_line
from ..system.files import to_json, write_text
from ..words import counted, typed
from .fetch.catalogue import catalogue
from .fetch.hub import PREFIX
from .file import Weights, least_scores, save_weights

CARD, WEIGHTS, SETTINGS = FILES = ("README.md", "model.safetensors", "config.json")
PUBLISHED_FACTS = (
    "step", "epoch", "metrics", "thresholds", "median_short_side", "object_side", "origin", "converted_from"
)  # fmt: skip
NUMBERS = {
    "AP": "AP, IoU 0.50:0.95", "AP50": "AP, IoU 0.50", "AP75": "AP, IoU 0.75", "APs": "AP, small objects",
    "APm": "AP, medium objects", "APl": "AP, large objects", "AR100": "AR, 100 detections",
}  # fmt: skip
PATHS = ("data.path", "train.weights", "model.backbone_weights")  # settings that may be local paths
# `origin` as written by training, with a path in the middle
STORED_ORIGIN = (
    r"(?P<before>continued from |random, backbone: |)(?P<path>.+?)(?P<after>, \d+ of \d+ classes carried over.*|)"
)
INDEX_METRICS = ("AP", "AP50", "AP75", "AR100")


class Evaluation(NamedTuple):
    """Metrics for a model card, and how they were measured."""

    summary: dict[str, float]  # COCO's metrics by name; -1 if undefined
    classes: dict[str, dict[str, Any]]  # AP, AP50 and number of objects by class; may be empty
    intervals: dict[str, list[float]]  # 95 % intervals by name; may be empty
    data: str  # name of the data; empty if unknown
    images: int | None
    how: str  # a description of the measurement


def read_evaluation(path: Path, weights: Path) -> Evaluation:
    """Read the output of `dino eval --json` for these weights.

    Raises:
        DataError: the file is not such an output.
        ConfigError: it is about other weights.
    """
    fix = f"create it with: dino eval --weights {typed(weights)} --data DIR --json > {typed(path)}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        evaluated, file = content["weights"], Path(content["data"])
        summary = {name: float(content[name]) for name in NUMBERS}
        classes = {
            name: {key: one[key] for key in ("AP", "AP50", "objects")} for name, one in content["classes"].items()
        }
        intervals = {name: pair for name, pair in content["intervals"].items() if pair}
        images = int(content["images"])
        where = counted(images, "image")
        how = f"measured by `dino eval` {__version__} on {where}{_measured(content.get('measured') or {})}"
    except OSError as error:
        what = f"it cannot be read: {error.strerror}"
        raise DataError(what, code="DATA-RESULTS", where=path, fix=fix) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"it is not what `dino eval --json` prints about weights ({type(error).__name__}: {error})"
        raise DataError(what, code="DATA-RESULTS", where=path, fix=fix) from None
    if Path(evaluated).resolve() != weights.resolve():
        raise ConfigError(f"{path} is about {evaluated}, and the weights to push are {weights}; {fix}")
    return Evaluation(summary, classes, intervals, _data_name(file), images, how)


def _measured(how: Mapping[str, Any]) -> str:
    """A description of the inference settings in the output of `dino eval --json`; empty for the defaults."""
    parts = []
    if how.get("slice") is not None:
        parts.append(f"in slices of {int(how['slice'])} pixels that overlap by {float(how['overlap']):g}")
    if how.get("precision"):
        parts.append(f"in {how['precision']}")
    if how.get("set"):
        parts.append("with " + ", ".join(f"`{_shorten_path(str(one))}`" for one in how["set"]))
    return "".join(f", {part}" for part in parts)


def stored_evaluation(weights: Weights) -> Evaluation | None:
    """The metrics that training stored in its weights; None if there are none."""
    stored = weights.facts.get("metrics")
    if not isinstance(stored, Mapping) or not all(isinstance(stored.get(name), int | float) for name in NUMBERS):
        return None
    how = "measured on the validation images when training saved these weights"
    name = Path(weights.config.data.path).name
    return Evaluation({name: float(stored[name]) for name in NUMBERS}, {}, {}, name, None, how)


def write_hub_folder(
    folder: Path, weights: Weights, evaluation: Evaluation | None, repository: str, license: str = "", data: str = ""
) -> None:
    """Write the three files; other files in the folder are left alone.

    Args:
        repository: `org/name`, for the usage example in the card.
        license: the hub's name of a licence, such as `apache-2.0`; empty: the card names none.
        data: the name of the evaluation data in the card; empty: the name of its folder.

    Raises:
        EnvironmentFault: the folder is not writable, or huggingface_hub is not installed.
    """
    config = config_from_dict(_without_folders(weights.config.model_dump(mode="json")))
    for key in PATHS:
        section, name = key.split(".")
        config = config.replace(key, _last_part(getattr(getattr(weights.config, section), name)))
    facts = {key: _without_folders(weights.facts[key]) for key in PUBLISHED_FACTS if key in weights.facts}
    if isinstance(origin := facts.get("origin"), str):
        facts["origin"] = _shorten_origin(origin)
    if evaluation is not None and data:
        evaluation = evaluation._replace(data=data)
    card = model_card(weights._replace(config=config, facts=facts), evaluation, repository, license)
    save_weights(folder / WEIGHTS, weights.tensors, config, weights.categories, facts)
    settings = {"library_name": "dino-detector", "version": __version__, "categories": weights.categories}
    write_text(folder / SETTINGS, to_json(settings | config.model_dump(mode="json"), indent=2) + "\n")
    write_text(folder / CARD, card)


def model_card(weights: Weights, evaluation: Evaluation | None, repository: str, license: str = "") -> str:
    """The text of README.md: YAML for the hub, then Markdown.

    Raises:
        EnvironmentFault: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        raise _not_installed() from None
    results = []
    if evaluation is not None:
        name = evaluation.data or "unnamed"
        results = [
            EvalResult("object-detection", name, name, f"coco_{key.lower()}", round(evaluation.summary[key], 6),
                       task_name="Object Detection", metric_name=NUMBERS[key])
            for key in INDEX_METRICS if evaluation.summary[key] >= 0
        ]  # fmt: skip
    data = ModelCardData(
        library_name="dino-detector", pipeline_tag="object-detection", license=license or None,
        tags=["object-detection", "dino", "detr", "computer-vision"], model_name=repository.split("/")[-1],
        eval_results=results or None,
    )  # fmt: skip
    parts = [f"---\n{data.to_yaml()}\n---\n", _about(weights, repository), _numbers(weights, evaluation)]
    return "\n".join([*parts, _settings(weights)])


def check_repository(name: str) -> None:
    """Check that the hub accepts a repository's name.

    Raises:
        ConfigError: it does not.
        EnvironmentFault: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError:
        raise _not_installed() from None
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"hf:{name} is not a valid hub name: {str(error).strip()}",
                          fix="write hf:org/name, such as hf:me/cells") from None  # fmt: skip


def upload(folder: Path, repository: str, private: bool) -> str:
    """Create the repository if necessary, upload the three files as one commit, and return the commit's URL.

    Raises:
        EnvironmentFault: the hub cannot be reached or denies access.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise _not_installed() from None
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(FILES), commit_message="Upload by dino push"
        )
        return str(done.commit_url)
    except Exception as error:  # its own errors, and those of its HTTP library
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EnvironmentFault(
            f"{repository} could not be pushed: {lines[0][:300]}",
            fix="log in with `hf auth login` or set HF_TOKEN, and check that you have write access",
        ) from None


def _not_installed() -> EnvironmentFault:
    return EnvironmentFault("the package `huggingface_hub` is not installed", fix=install_line("hub"))


def _without_folders(value: Any) -> Any:
    """Reduce local paths, which are private, to their last part, in nested values; other values are unchanged."""
    if isinstance(value, Mapping):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(one) for one in value]
    if isinstance(value, str) and re.match(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]", value):
        return _last_part(value)
    return value


def _last_part(path: str) -> str:
    """The last part of a path of any operating system; names of weights on the hub, in timm or published stay."""
    public = {name for entry in catalogue().weights for name in (entry.name, entry.former_name) if name}
    if path.startswith((PREFIX, "timm/")) or path in public:
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _shorten_path(text: str) -> str:
    """Reduce a path in a text to its last part."""
    return re.sub(r"[^\s=]*[/\\](?:.*[/\\])?\S*", lambda match: _last_part(match[0]), text)


def _shorten_origin(text: str) -> str:
    """Reduce all paths in a description of the origin of weights to their last part.

    Training stores a path with known words around it. Everything else was written by a person: there, a path ends at
    punctuation, and a name such as `org/data` stays, because a licence may require it.
    """
    stored = re.fullmatch(STORED_ORIGIN, text, re.DOTALL)
    if stored and (stored["before"] or stored["after"]):
        return stored["before"] + _last_part(stored["path"]) + _shorten_path(stored["after"])
    return re.sub(r"[^\s=(,;]*[/\\](?:[^,;:()]*[/\\])?[^\s,;:()]*",
                  lambda match: match[0] if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", match[0]) else _last_part(match[0]),
                  text)  # fmt: skip


def _data_name(annotations: Path) -> str:
    """The name of a dataset's folder, from the path of its annotations."""
    plain = ("annotations", "labels", "train", "val", "valid", "test")
    return next((folder.name for folder in annotations.parents if folder.name not in plain), "")


def _about(weights: Weights, repository: str) -> str:
    names = [category.name.replace("|", "/") for category in weights.categories]
    model, data = weights.config.model, weights.config.data
    origin = weights.facts.get("origin")
    return f"""# {repository.split("/")[-1]}

A [DINO](https://arxiv.org/abs/2203.03605) object detector: backbone `{model.backbone}`, {model.num_queries} queries, \
{model.num_encoder_layers} encoder and {model.num_decoder_layers} decoder layers. Images are resized to a short side \
of {data.eval_scale} pixels, at most {data.max_size} on the long one.{f" Origin: {origin}." if origin else ""}

It detects {len(names)} {"class" if len(names) == 1 else "classes"}: {", ".join(names)}.

## Use

In a checkout of dino's repository, with Python 3.11 or newer:

```
python -m pip install .
dino predict photos/ --weights hf:{repository} --out boxes.json
```

```python
from dinocore import load_detector

found = load_detector("hf:{repository}")("image.jpg")
print(found.names, found.scores, found.boxes_xyxy)
```
"""


def _numbers(weights: Weights, evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return "## Evaluation\n\nThese weights have not been evaluated.\n"
    on = f", data: {evaluation.data}" if evaluation.data else ""
    lines = ["## Evaluation", "", f"COCO metrics, {evaluation.how}{on}.", "", "| number | value | 95 % interval |"]
    lines.append("|---|---|---|")
    for key, name in NUMBERS.items():
        low_high = evaluation.intervals.get(key)
        interval = f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else ""
        lines.append(f"| {name} | {_number(evaluation.summary[key])} | {interval} |")
    if evaluation.classes:
        lines += ["", "| class | objects | AP | AP50 |", "|---|---|---|---|"]
        for name, one in evaluation.classes.items():
            shown = name.replace("|", "\\|")
            lines.append(f"| {shown} | {one['objects']} | {_number(one['AP'])} | {_number(one['AP50'])} |")
    if weights.class_thresholds:
        names = table_names(weights.categories)
        thresholds = least_scores(weights.categories, weights.threshold, weights.class_thresholds)
        lines += ["", "F1 is best at each class's own score threshold, which `dino predict` uses:", ""]
        lines += ["| class | threshold |", "|---|---|"]
        for name, score in zip(names, thresholds, strict=True):
            shown = name.replace("|", "\\|")
            lines.append(f"| {shown} | {score:.3f} |")
    elif weights.threshold is not None:
        lines += ["", f"F1 is best at a score threshold of {weights.threshold:.3f}, which `dino predict` uses."]
    lines += ["", "The metrics are for images like these; others may differ."]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.4f}"


def _settings(weights: Weights) -> str:
    train = weights.config.train
    rows = {
        "epochs": train.epochs, "batch size": train.batch_size, "learning rate": train.lr, "precision": train.amp,
        "kept after epoch": weights.facts.get("epoch"), "step": weights.facts.get("step"),
    }  # fmt: skip
    converted = weights.facts.get("converted_from")
    note = "\nConverted from another codebase; the settings are those of its preset.\n" if converted else ""
    table = "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value is not None)
    return f"## Training\n\n| setting | value |\n|---|---|\n{table}{note}\nAll settings are in `{SETTINGS}`.\n"
