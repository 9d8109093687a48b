"""YOLO without a `data.yaml`: a text file next to or above the labels lists the class names, one per line.

labelImg and Label Studio write classes.txt, Roboflow _darknet.labels in every split, CVAT obj.names and obj.data.
"""

from pathlib import Path

from ...errors import DataError
from ..split import WORDS, Layout, PathGuard, Split, layout_of, read_text
from .data_yaml import CLASS_LISTS, bad_yaml, class_lists, listed_classes
from .pairs import paired_folders
from .yolo import folders_of_entry, usual_folders


def find_class_list(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of Darknet's obj.data (CVAT), or of classes.txt beside images/ and labels/ (Label Studio).

    With classes.txt, the splits may be lists of images, such as train.txt.
    """
    if (darknet := folder / "obj.data").is_file():
        return _darknet(folder, guard.check(darknet), guard)
    file = folder / "classes.txt"
    if not (file.is_file() and (folder / "images").is_dir() and (folder / "labels").is_dir()):
        return None
    classes = listed_classes(guard.check(file))
    found = {name: usual_folders(folder, words) for name, words in WORDS.items()}
    splits = {name: listing for name, listing in found.items() if listing}
    if not splits and (listed := _listed_splits(folder, guard)):
        return layout_of("YOLO, classes.txt", listed)
    splits = splits or {"train": (folder / "images",)}
    made = {name: Split(file, [folder], "yolo", folder, listing, classes) for name, listing in splits.items()}
    return layout_of("YOLO, classes.txt", made)


def find_class_list_anywhere(folder: Path, guard: PathGuard) -> Layout | None:
    """The layout of a list of classes and label files beside their images (labelImg, Roboflow) or in any other folder.

    Raises:
        DataError: several lists of classes may belong to one split.
    """
    lists = class_lists(folder)
    if not lists:
        return None
    pairs = paired_folders(folder, ".txt", lambda file: guard.status(str(file)) == "ok" and is_yolo(file))
    made = _listed_splits(folder, guard) if pairs else {}
    for name, (labels, images) in {} if made else pairs.items():
        file = guard.check(_nearest_list(lists, labels, images, folder, guard))
        label_folder = None if labels == images else labels
        made[name] = Split(file, [images], "yolo", folder, (images,), listed_classes(file), labels=label_folder)
    return layout_of(f"YOLO, {lists[0].name}", made)


def _listed_splits(folder: Path, guard: PathGuard) -> dict[str, Split]:
    """The splits whose images are listed in train.txt, val.txt … next to a list of classes; none without train.txt."""
    classes = next((folder / name for name in CLASS_LISTS if (folder / name).is_file()), None)
    texts = {name: [folder / f"{word}.txt" for word in words] for name, words in WORDS.items()}
    listings = {name: next((file for file in files if file.is_file()), None) for name, files in texts.items()}
    if classes is None or listings["train"] is None or is_yolo(guard.check(listings["train"])):
        return {}
    names = listed_classes(guard.check(classes))
    found = {name: guard.check(file) for name, file in listings.items() if file is not None}
    return {name: Split(classes, [folder], "yolo", folder, (file,), names) for name, file in found.items()}


def _nearest_list(lists: list[Path], labels: Path, images: Path, folder: Path, guard: PathGuard) -> Path:
    """The list of classes in the folder of the labels or of the images, or in the nearest parent folder.

    Any other list will do if all lists have the same classes.

    Raises:
        DataError: they differ.
    """
    for place in (labels, images, *labels.parents):
        if nearest := next((place / name for name in CLASS_LISTS if place / name in lists), None):
            return nearest
    if len({listed_classes(guard.check(file)) for file in lists}) > 1:
        listed = ", ".join(file.relative_to(folder).as_posix() for file in lists[:5])
        fix = f"copy the right one to {labels}, or write a dataset.toml with its names"
        raise DataError(f"{listed} may each name the classes of {labels}", code="DATA-LAYOUT", where=labels, fix=fix)
    return lists[0]


def is_yolo(file: Path) -> bool:
    """Whether a file starts with a class number and at least four more columns."""
    columns = next((line.split() for line in read_text(file, strict=False).splitlines() if line.strip()), [])
    return len(columns) >= 5 and columns[0].isdigit()


def _darknet(folder: Path, file: Path, guard: PathGuard) -> Layout | None:
    """The layout of an obj.data with lines `key = value`: `names` is a list of classes, `train` a list of images."""
    pairs = [line.partition("=") for line in read_text(file).splitlines()]
    content = {key.strip().lower(): value.strip() for key, _, value in pairs}
    names = folders_of_entry(content.get("names", "obj.names"), None, folder, file, guard)
    if not names:
        raise bad_yaml("its class names file (`names = obj.names`) is missing", file)
    made = {}
    for name, words in WORDS.items():
        entry = next((content[word] for word in words if content.get(word)), None)
        if entry and (listing := folders_of_entry(entry, None, folder, file, guard)):
            made[name] = Split(file, [folder], "yolo", folder, listing, listed_classes(names[0]))
    return layout_of("YOLO, obj.data", made)
