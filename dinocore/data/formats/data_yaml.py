"""YOLO's `data.yaml`: classes and keypoints; and the class lists that can replace it.

Source: https://docs.ultralytics.com/datasets/detect/
"""

from pathlib import Path
from typing import Any

import yaml

from ...errors import DataError
from ..split import one_line, read_text, visible_files

CLASS_LISTS = ("classes.txt", "_darknet.labels", "obj.names")  # of labelImg and Label Studio, Roboflow, CVAT


class _TextLoader(yaml.BaseLoader):
    """Loads every value as text: YAML 1.1 would turn `no` into False and `010` into 8. Duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if duplicate := next((key for key in keys if keys.count(key) > 1), ""):
            raise ValueError(f"`{duplicate}` appears twice")
        return super().construct_mapping(node, deep)


def read_data_yaml(file: Path) -> dict[str, Any]:
    """The content of a YAML file; all values are texts.

    Raises:
        DataError: it cannot be read, or its top level is not a mapping.
    """
    try:
        content = yaml.load(file.read_bytes(), _TextLoader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise bad_yaml(f"it cannot be read: {' '.join(str(error).split())[:200]}", file) from None
    if not isinstance(content, dict):
        raise bad_yaml("its top level has no keys", file)
    return content


def class_names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    """The class names in the order of their numbers.

    Raises:
        DataError: there are none, or `nc` differs from their number.
    """
    names = content.get("names")
    if isinstance(names, dict):
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise bad_yaml("it has no `names`, a list of classes or a table of them from 0 without gaps", file)
    if str(content.get("nc", len(names))).strip() != str(len(names)):
        raise bad_yaml(f"`nc` is {content['nc']}, but there are {len(names)} `names`", file)
    return tuple(map(one_line, names))


def class_lists(folder: Path) -> list[Path]:
    """All lists of classes in a folder and its subfolders."""
    suffixes = {Path(name).suffix for name in CLASS_LISTS}
    return [file for file in visible_files(folder, suffixes) if file.name in CLASS_LISTS]


def listed_classes(file: Path) -> tuple[str, ...]:
    """The names in a list of classes, one per line.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    names = tuple(one_line(line) for line in read_text(file).splitlines() if line.strip())
    if not names:
        fix = "write the class names to it, one per line, in the order of their numbers"
        raise DataError("the class list is empty", code="DATA-FILE", where=file, fix=fix)
    return names


def keypoints_of(shape: Any, file: Path) -> tuple[int, int] | None:
    """The number of keypoints per line and of values per keypoint, from `kpt_shape`; None if it is not set.

    Raises:
        DataError: the value of `kpt_shape` is invalid.
    """
    if shape is None:
        return None
    good = isinstance(shape, list) and len(shape) == 2 and all(str(v).isdigit() for v in shape)
    if not good or int(shape[1]) not in (2, 3):
        what = (
            f"`kpt_shape` is {shape}; write the number of keypoints and 2 or 3, such as [17, 3], or [0, 2] for polygons"
        )
        raise bad_yaml(what, file)
    return int(shape[0]), int(shape[1])


def bad_yaml(what: str, file: Path) -> DataError:
    """The error for an invalid YAML file."""
    return DataError(what, code="DATA-YAML", where=file)
