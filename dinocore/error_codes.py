"""All codes of errors and findings: level, meaning, example, and fix.

The page that lists them is written by `python -m dinocore.error_codes > docs/errors.md`.
"""

import sys
from typing import NamedTuple

ERROR, WARNING, NOTE = "error", "warning", "note"


class Code(NamedTuple):
    """What a code stands for."""

    level: str  # of a finding; codes that end a command are always errors
    meaning: str
    example: str
    fix: str = ""


CHECK = "run `dino check-data DIR --fix fixed.json`, look at fixed.json.log, and use the copy"
SEE = "view it with `dino check-data DIR --html findings.html`"

GENERAL = {
    "USAGE": Code(
        ERROR,
        "an unknown argument or option",
        "No such option: --epoch; did you mean --epochs? See dino train --help",
    ),
    "CONFIG": Code(ERROR, "an invalid preset, setting or argument", "unknown precision `fp8`"),
    "DATA": Code(ERROR, "an unusable dataset or image", "no images in empty/"),
    "CHECKPOINT": Code(ERROR, "an unusable weights file", "best.safetensors: this file is empty"),
    "ENVIRONMENT": Code(ERROR, "the machine lacks something that is needed", "no device `cuda` here"),
    "DIVERGED": Code(ERROR, "training or inference produced non-finite numbers", "loss is not finite in step 17"),
    "EXPORT": Code(
        ERROR,
        "an exported file failed to run, or its results differ from the model's (exit code 1)",
        "the results of the exported file differ from the model's: scores differ by up to 0.2",
        "do not use FILE.unverified; try another --format or --size, and please report this",
    ),
    "INTERRUPTED": Code(ERROR, "stopped by a signal; the state is saved", "interrupted after step 40 of 600"),
    "INPUTS": Code(
        ERROR, "some inputs failed, the others were processed (exit code 7)", "1 of 9 images could not be read"
    ),
    "BUG": Code(ERROR, "a bug in dino", "KeyError: 'boxes'", "report it with the lines above"),
}

FILES = {
    "DATA-FOLDER": Code(
        ERROR, "the data folder is missing or is a file", "the data folder coco does not exist",
        "give the folder that holds the annotations and the images",
    ),
    "DATA-LAYOUT": Code(
        ERROR, "the folder has no annotations that dino recognises, or several", "no annotations in coco",
        "use one of the layouts in docs/data.md, or write a dataset.toml",
    ),
    "DATA-SPLIT": Code(
        WARNING,
        "a split is missing: without `train` there is no training, and without `val` AP is too optimistic",
        "my-data has no training split", "add it, or set it in a dataset.toml (docs/data.md)",
    ),
    "DATA-SPLIT-EMPTY": Code(
        WARNING, "an evaluation split has no object of a known class",
        "no objects to evaluate on: AP cannot be measured",
        "label it, or remove it and use --val-fraction 0.2",
    ),
    "DATA-MANIFEST": Code(
        ERROR, "an invalid `dataset.toml`", "`format` is `pascal`",
        "see docs/data.md for the format of dataset.toml",
    ),
    "DATA-YAML": Code(
        ERROR, "an invalid `data.yaml`", "data.yaml has no `names`",
        "write `train: images/train` and `names: [a, b]`",
    ),
    "DATA-FILE": Code(
        ERROR, "an annotation file cannot be read", "a.json cannot be read: Permission denied",
        "make it readable, save it as UTF-8, or export it again",
    ),
    "DATA-JSON": Code(
        ERROR, "annotations are not valid JSON", "not valid JSON at line 3, column 9 of 512 bytes",
        "copy or export it again",
    ),
    "DATA-KEYS": Code(
        ERROR, "a COCO file lacks one of its lists", "it lacks the list `categories`",
        "write `images`, `categories` and `annotations`",
    ),
    "DATA-ENTRY": Code(
        ERROR, "entries lack a required key", "entries of `images` without `id` (counted from 0): 4", CHECK,
    ),
    "DATA-ID": Code(ERROR, "an id is not a whole number", "`id` in `images` that is not a whole number: '7'", CHECK),
    "DATA-ID-TWICE": Code(
        ERROR, "an id appears more than once", "ids that appear more than once in `images`: 7", CHECK,
    ),
    "DATA-ORPHAN": Code(
        ERROR, "an object refers to an image or class that does not exist",
        "`image_id` that is not in `images`: annotation 12 -> 404", f"{CHECK}, or set data.allow_orphans=true",
    ),
    "DATA-PATH-ESCAPE": Code(
        ERROR, "a file name leads out of the data folder", "image 9: '../../etc/passwd'",
        "write names relative to the image folder (`check-data --fix` does); for links that lead out, set "
        "data.follow_symlinks=true",
    ),
    "DATA-LABEL-LINE": Code(
        ERROR, "a line of a YOLO label file cannot be read", "a.txt line 3: 6 columns",
        "write: class cx cy width height, as fractions of the image's sides",
    ),
    "DATA-LABEL-FORM": Code(
        ERROR, "lines of a YOLO label file are ambiguous, or are not labels",
        "lines of 11 columns are either polygons or boxes with keypoints: a.txt line 1",
        "write `kpt_shape: [K, D]` to data.yaml if they have keypoints, `kpt_shape: [0, 2]` if they are polygons, or "
        "reduce them to class cx cy width height",
    ),
    "DATA-LABEL-NONE": Code(
        WARNING, "no image of a split has a YOLO label file",
        "none of 12 images has a label file, such as labels/a.txt", "put the label files there",
    ),
    "DATA-LABEL-LOST": Code(WARNING, "a label file has no image", "b.txt", "delete it, or put the image back"),
    "DATA-LABEL-SHARED": Code(
        WARNING, "images whose names differ only in the suffix have one label file", "a.txt (a.jpg, a.png)",
        "rename all but one of them, and give each its own label file",
    ),
    "DATA-REGION-IGNORED": Code(
        NOTE, "regions that were not annotated, as marked in KITTI and VisDrone, are skipped",
        "12 `DontCare` regions skipped",
    ),
    "DATA-CSV": Code(
        ERROR, "a row of a CSV table cannot be read", "line 7: a.jpg,x,2,3,4,cell",
        "write filename,xmin,ymin,xmax,ymax,class with corners in pixels",
    ),
    "DATA-XML": Code(ERROR, "a Pascal VOC file cannot be read", "a.xml: not well-formed: line 7", "correct the file"),
    "DATA-VOC-NAME": Code(
        WARNING, "a Pascal VOC file's `<filename>` differs from its own name; its own name is used",
        "0012.xml says 0007.jpg", "if `<filename>` is right, name the XML files after the images",
    ),
    "DATA-VOC-ORIGIN": Code(
        NOTE, "it is unclear whether Pascal VOC's pixels count from 0 or 1", "no box touches the left or top edge",
        "if the tool that wrote them counts from 0, set data.voc_first_pixel=0",
    ),
    "DATA-FILLED": Code(NOTE, "missing in the file and filled in", "no `area` in 12 annotations: width x height"),
    "DATA-RESULTS": Code(
        ERROR, "an invalid results file, or one for other images or classes",
        "7 of 90 results are of 2 classes (category_id 0, 91) that val.json doesn't have",
        "give the data and --split it was made from; --set data.allow_orphans=true skips unknown ones",
    ),
    "DATA-NOTHING": Code(
        ERROR, "there is nothing to train on", "3 images but no objects to train on",
        "see the other findings of `dino check-data DIR`",
    ),
}  # fmt: skip

BOXES = {
    "DATA-BOX": Code(ERROR, "a box is not four numbers", "annotation 4: [1, 2, 3]", CHECK),
    "DATA-BOX-NAN": Code(ERROR, "a box has NaN or infinity", "annotation 4711: [12, nan, 5, 5]", CHECK),
    "DATA-BOX-FLAT": Code(
        WARNING, "boxes have no width or height; not trained on", "annotation 4: [5, 5, 0, 9]", CHECK,
    ),
    "DATA-BOX-FLAT-MANY": Code(
        ERROR, "more than 5 % of the boxes have no width or height", "3 of 41 boxes",
        "COCO's `bbox` is x, y of the top left corner, width, height; VOC's min is less than max",
    ),
    "DATA-BOX-CORNERS": Code(
        ERROR, "boxes look like two corners", "19 of 20 boxes reach beyond their image; are they x0 y0 x1 y1?",
        "write x, y, width, height in pixels",
    ),
    "DATA-BOX-SHARES": Code(
        ERROR, "boxes look normalised", "most boxes lie within [0, 1]", "COCO's `bbox` is in pixels",
    ),
    "DATA-BOX-OUTSIDE": Code(
        WARNING, "boxes lie outside their image, or are far larger; not trained on", "annotation 4", CHECK,
    ),
    "DATA-BOX-PARTLY": Code(NOTE, "boxes reach beyond their image; clipped for training", "annotation 4"),
    "DATA-BOX-TINY": Code(
        WARNING, "boxes are smaller than data.min_box_size; not trained on", "annotation 4: [5, 5, 0.01, 9]",
        "delete them, or lower data.min_box_size",
    ),
    "DATA-BOX-DOT": Code(
        WARNING, "boxes of at most 2 x 2 pixels: usually an accidental click", "a.jpg [180, 328, 1, 1]",
        "check them, and delete or redraw them",
    ),
    "DATA-BOX-TWICE": Code(
        WARNING, "two boxes of one class with IoU of 90 % or more: labelled twice",
        "a.jpg cell [5, 5, 9, 9] ~ cell [5, 5, 9, 8]", "delete one of each pair",
    ),
    "DATA-BOX-TWO-CLASSES": Code(
        NOTE, "two boxes of different classes with IoU of 90 % or more", "a.jpg car [5, 5, 9, 9] ~ truck [5, 5, 9, 8]",
        "look at them",
    ),
    "DATA-CROWD": Code(
        NOTE, "crowd regions, or VOC's `difficult` objects: ignored in training, used in evaluation", "14 annotations",
    ),
}  # fmt: skip

CLASSES = {
    "DATA-CLASS-UNKNOWN": Code(
        WARNING, "a class that is not in the training split; not evaluated", "star",
        "use the names of the training split, or train on images of them; classes are matched by name",
    ),
    "DATA-CLASS-UNUSED": Code(NOTE, "a class has no objects to train on", "star"),
    "DATA-CLASS-HEADING": Code(NOTE, "a category without objects that only groups others is not a class", "shapes"),
    "DATA-CLASS-FIRST": Code(
        WARNING, "a YOLO dataset uses every class except the first",
        "no line has class 0, cat, and all others are there",
        "YOLO classes count from 0; if your tool counted from 1, add a name at the start of `names`",
    ),
    "DATA-CLASS-CONTROL": Code(
        WARNING, "control characters are dropped from a class's name", r"'\x1b[31mcell' -> [31mcell",
        "write the name without them",
    ),
    "DATA-CLASS-RARE": Code(NOTE, "a class has fewer than 10 objects", "star: 3", "label more of them"),
    "DATA-CLASS-NAME": Code(
        WARNING, "two classes have the same name and are merged", "disc: ids 1, 4", "merge or rename them"
    ),
    "DATA-CLASS-ALIKE": Code(
        WARNING, "names of two classes differ only in case, spaces, `-` and `_`",
        "Cat (2 objects) ~ cat (31 objects)",
        "if they are one class, give them the same name in the annotations; otherwise two classes are trained",
    ),
}  # fmt: skip

IMAGES = {
    "DATA-IMAGE-MISSING": Code(
        ERROR, "an image is missing", "a.jpg",
        "check its name and folder; in a dataset, restore it or remove it from the annotations"
    ),
    "DATA-IMAGE-DAMAGED": Code(ERROR, "an image is damaged", "a.jpg: image file is truncated", "copy it again"),
    "DATA-IMAGE-CUT": Code(
        WARNING, "a truncated JPEG; it is used if at least 95 % of its rows are intact",
        "a.jpg: 98 % of its rows", "copy it again",
    ),
    "DATA-IMAGE-FORMAT": Code(
        ERROR, "a file is not an image that dino can read", "a.jpg is not an image in a known format",
        "check what it is with `file a.jpg`, save it as JPEG or PNG, or remove it",
    ),
    "DATA-IMAGE-BANDS": Code(
        ERROR, "an image has bands other than colour and transparency, or is an array; see docs/data.md",
        "a.tif has 8 bands; dino reads grey and RGB images, with or without transparency",
        "extract three bands as RGB",
    ),
    "DATA-IMAGE-CHANNELS": Code(
        NOTE, "images are not RGB; the message says how they are converted",
        "12 of 40 images are grey and become RGB",
    ),
    "DATA-IMAGE-LARGE": Code(
        ERROR, "an image has more pixels than data.max_pixels; not decoded", "a.png has 30000 x 30000 pixels",
        "scale it down, or cut it into parts",
    ),
    "DATA-IMAGE-SIZE": Code(
        ERROR, "an image's size differs from the annotations",
        "a.jpg has 48 x 64 pixels, but the annotations say 64 x 48",
        "correct the sizes; if boxes were drawn on images as stored, without EXIF rotation, set data.exif=false",
    ),
    "DATA-IMAGE-TURNED": Code(
        WARNING, "images are rotated by EXIF, and labels without image sizes don't say whether boxes are, too",
        "4 images with boxes are rotated by EXIF, and it is unclear whether the boxes were drawn on the upright image",
        "check them with `dino inspect-data DIR`; if boxes were drawn on images as stored, set data.exif=false",
    ),
    "DATA-IMAGE-NAME": Code(
        WARNING, "a file name differs from the one on disk in case, Unicode form, %20 or suffix",
        "Cell%201.JPG -> cell 1.jpg", "use the names on disk",
    ),
    "DATA-IMAGE-TWICE": Code(WARNING, "two entries share a file", "a.jpg: images 3 and 9", "merge them"),
    "DATA-IMAGE-UNLISTED": Code(NOTE, "images are in the folder but not in the annotations", "b.jpg"),
    "DATA-IMAGE-EMPTY": Code(NOTE, "images without objects: trained on as background", "a.jpg"),
    "DATA-IMAGE-FRAMES": Code(WARNING, "a file contains several images; only the first is used", "a.gif: 12 frames"),
    "DATA-IMAGE-DARK": Code(WARNING, "an image is nearly black", "a.jpg: mean brightness 3 of 255", SEE),
    "DATA-IMAGE-BLANK": Code(WARNING, "an image has a single colour", "a.jpg: deviation 0.4 of 255", SEE),
    "DATA-IMAGE-ODD": Code(WARNING, "an image has an odd size", "a.jpg: 5000 x 12", SEE),
    "DATA-LEAK": Code(
        WARNING, "the same image is in two splits: AP will be too optimistic", "train a.jpg = val b.jpg",
        "remove it from one of them",
    ),
    "DATA-DUPLICATE": Code(WARNING, "the same image more than once in a split", "a.jpg = b.jpg", "keep one of each"),
    "DATA-NEAR-LEAK": Code(WARNING, "nearly the same image in two splits", "train a.jpg ~ val b.jpg", SEE),
    "DATA-NEAR-DUPLICATE": Code(NOTE, "nearly the same image twice in a split", "a.jpg ~ b.jpg", SEE),
    "DATA-URL": Code(
        ERROR, "an address where a file is needed", "https://a.b/c.jpg", "download it first, and give the file"
    ),
}  # fmt: skip

MODEL = {
    "MODEL-QUERIES": Code(
        WARNING, "an image has more objects than the model has queries: some can never be found",
        "a.jpg: 1200 objects, 900 queries", "--set model.num_queries=N, N at least the objects of that image",
    ),
    "MODEL-DETECTIONS": Code(
        WARNING, "an image has more objects than the maximum number of detections", "a.jpg: 400 objects, 300 kept",
        "--set eval.max_dets=N, N at least the objects of that image",
    ),
    "MODEL-DENOISING": Code(
        NOTE, "an image has more objects than denoising can use: each step samples some of them", "a.jpg: 180 of 100",
        "--set model.denoising.num_pairs=N, N at least the objects of that image",
    ),
    "MODEL-CELL": Code(
        NOTE, "objects are smaller than a cell of the finest level at evaluation size", "31 % of train",
        "raise data.eval_scale and data.train_scales, or use a preset with a finer level, such as r50-5scale",
    ),
    "MODEL-ANCHORS": Code(
        NOTE,
        "objects are more than 4 times wider, narrower, higher or lower than every anchor; anchors are the boxes from "
        "which the model starts",
        "12 % of train",
        "check AP; for small objects in large images, try --slice auto",
    ),
}  # fmt: skip
SECTIONS = {
    "Commands": GENERAL,
    "Annotation files": FILES,
    "Boxes": BOXES,
    "Classes": CLASSES,
    "Images": IMAGES,
    "Data and model": MODEL,
}
CODES = {code: entry for section in SECTIONS.values() for code, entry in section.items()}

HEAD = ("| code | level | meaning | example | fix |", "|---|---|---|---|---|")
INTRO = """# Errors and findings

This page is generated from `dinocore/error_codes.py`. An error ends a command and looks like this:

    error[DATA-BOX-NAN]: annotations whose `bbox` is not four finite numbers: annotation 4711: [12, nan, 5, 5]
      where: coco/annotations/instances_train2017.json
      fix: run `dino check-data DIR --fix fixed.json`, look at fixed.json.log, and use the copy

or, if there is no location, like this, on one line: `error[CODE]: what; what to do`.
With `--json`, stdout also has it as an object: `{"error": {"code", "what", "where", "fix", "exit_code"}}`. Codes are
stable. Exit codes: 1 a bug or a failed export, 2 usage and config, 3 data, 4 checkpoint, 5 environment,
6 diverged, 7 some inputs failed, 130 and 143 interrupted. `dino check-data` reports the codes that start with DATA and
MODEL: errors stop training, warnings are printed when it starts, and notes are informational.
"""


def as_markdown() -> str:
    """The page that lists all codes."""
    parts = [INTRO]
    for title, codes in SECTIONS.items():
        rows = [f"| `{code}` | {c.level} | {c.meaning} | {c.example} | {c.fix} |" for code, c in codes.items()]
        parts.append("\n".join([f"## {title}\n", *HEAD, *rows]))
    return "\n".join(part.rstrip() + "\n" for part in parts)


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
