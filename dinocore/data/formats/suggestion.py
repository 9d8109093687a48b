"""What a refusal of a folder adds: whose files these are, and a `dataset.toml` that can be used as it is."""

import json
from collections import Counter
from pathlib import Path

from ..images import IMAGE_SUFFIXES
from ..split import visible_files

TOOLS = {  # keys of the JSON that tools write, one file an image or one for all; none of it is COCO's
    "labelme": {"shapes", "imagePath"}, "Supervisely": {"objects", "size"}, "Label Studio": {"data", "annotations"},
    "VGG Image Annotator": {"_via_img_metadata"}, "CreateML": {"image", "annotations"}, "FiftyOne": {"samples"},
    "BDD100K": {"labels", "name"},
}  # fmt: skip
MOST = 2000  # label files that are read to count classes


def suggest(folder: Path, kind: str = "", annotations: Path | None = None) -> str:
    """A dataset.toml that names the folder with most images and the annotations that go with it; or an empty text.

    Args:
        kind, annotations: the format and its file, where they are known.
    """
    images = _fullest(folder, *IMAGE_SUFFIXES)
    if images is None:
        return ""
    xml, texts = _fullest(folder, ".xml"), _fullest(folder, ".txt")
    if kind:
        lines = [
            f'format = "{kind}"',
            "[train]",
            _line("annotations", annotations, folder),
            _line("images", images, folder),
        ]
    elif xml:
        lines = ['format = "voc"', "[train]", _line("annotations", xml, folder), _line("images", images, folder)]
    elif texts and (count := _classes_of(texts)):
        names = ", ".join(f'"class {n}"' for n in range(count))
        lines = ['format = "yolo"', f"names = [{names}]", "[train]"]
        lines += [_line("images", images, folder), _line("annotations", texts, folder)]
    else:
        return ""
    return f"\n{folder}/dataset.toml may begin with\n" + "\n".join(f"  {line}" for line in lines)


def foreign_json(folder: Path) -> str:
    """Whose JSON lies in a folder, if it is a known tool's, with what to do; or an empty text."""
    for file in visible_files(folder, (".json",))[:20]:
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        first = content[0] if isinstance(content, list) and content else content
        keys = set(first) if isinstance(first, dict) else set()
        tool = next((tool for tool, own in TOOLS.items() if own <= keys), "")
        if tool:
            return f"; {file.relative_to(folder).as_posix()} looks like {tool}'s: export it as COCO, YOLO or Pascal VOC"
    return ""


def _fullest(folder: Path, *suffixes: str) -> Path | None:
    counts = Counter(file.parent for file in visible_files(folder, suffixes))
    return counts.most_common(1)[0][0] if counts else None


def _classes_of(folder: Path) -> int:
    """How many classes lines of YOLO's have, by their greatest number; 0 if they are none."""
    greatest = -1
    for file in sorted(folder.glob("*.txt"))[:MOST]:
        for line in file.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) >= 5 and words[0].isdigit():
                greatest = max(greatest, int(words[0]))
            elif words:
                return 0
    return greatest + 1 if greatest < 1000 else 0


def _line(key: str, path: Path | None, folder: Path) -> str:
    return f"{key} = {json.dumps('' if path is None else path.relative_to(folder).as_posix(), ensure_ascii=False)}"
