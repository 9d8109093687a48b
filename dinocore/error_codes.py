"""Every code of an error or a finding: how grave, what it means, an example, what to do.

The page that lists them is written by `python -m dinocore.error_codes > docs/errors.md`.
"""

import sys
from typing import NamedTuple

ERROR, WARNING, NOTE = "error", "warning", "note"


class Code(NamedTuple):
    """What a code stands for."""

    level: str  # of a finding; what ends a command is always an error
    meaning: str
    example: str
    fix: str = ""


CHECK = "run `dino check-data DIR --fix fixed.json`, look at fixed.json.log, and use the copy"
SEE = "see it with `dino check-data DIR --html findings.html`"

GENERAL = {
    "USAGE": Code(
        ERROR,
        "an argument or option is not known",
        "No such option: --epoch; did you mean --epochs? See dino train --help",
    ),
    "CONFIG": Code(ERROR, "a preset, setting or argument cannot be used", "there is no precision `fp8`"),
    "DATA": Code(ERROR, "a data set or image cannot be used", "no images in empty/"),
    "CHECKPOINT": Code(ERROR, "a file of weights cannot be used", "best.safetensors: this file is empty"),
    "ENVIRONMENT": Code(ERROR, "the machine lacks something", "there is no device `cuda` here"),
    "DIVERGED": Code(ERROR, "training or inference gave numbers that are not finite", "loss is not finite in step 17"),
    "EXPORT": Code(
        ERROR,
        "an exported file could not be run or does not give its model's numbers (exit code 1)",
        "the exported file does not give the model's numbers: scores differ by up to 0.2",
        "do not use FILE.unverified; try another --format or --size, and report it",
    ),
    "INTERRUPTED": Code(ERROR, "a signal asked for an end; the state is saved", "interrupted after step 40 of 600"),
    "INPUTS": Code(ERROR, "some inputs failed, the others are done (exit code 7)", "1 of 9 images could not be read"),
    "BUG": Code(ERROR, "a fault of dino", "KeyError: 'boxes'", "report it with the lines above"),
}

FILES = {
    "DATA-FOLDER": Code(
        ERROR, "the data folder is missing or is a file", "the data folder coco does not exist",
        "give the folder that holds the annotations and the images",
    ),
    "DATA-LAYOUT": Code(
        ERROR, "the folder has no annotations that we know, or too many", "no annotations in coco",
        "put them where one of the layouts has them (docs/data.md), or write a dataset.toml",
    ),
    "DATA-SPLIT": Code(
        WARNING,
        "a split is missing; nothing can be trained without `train`, and without `val` evaluation flatters the model",
        "my-data has no training split", "add it, or name it in a dataset.toml (docs/data.md)",
    ),
    "DATA-SPLIT-EMPTY": Code(
        WARNING, "a split to evaluate on has no object of a known class",
        "no object to judge by: AP cannot be measured",
        "label it, or leave it out and use --val-fraction 0.2",
    ),
    "DATA-MANIFEST": Code(
        ERROR, "a `dataset.toml` cannot be used", "`format` is `pascal`",
        "see docs/data.md for what dataset.toml holds",
    ),
    "DATA-YAML": Code(
        ERROR, "a `data.yaml` cannot be used", "data.yaml has no `names`",
        "write `train: images/train` and `names: [a, b]`",
    ),
    "DATA-FILE": Code(
        ERROR, "a file of annotations cannot be read", "a.json cannot be read: Permission denied",
        "let it be read, save it as UTF-8, or export it again",
    ),
    "DATA-JSON": Code(
        ERROR, "annotations are not JSON", "not valid JSON at line 3, column 9 of 512 bytes", "copy or export it again",
    ),
    "DATA-KEYS": Code(
        ERROR, "a COCO file lacks one of its lists", "it has no list `categories`",
        "write `images`, `categories` and `annotations`",
    ),
    "DATA-ENTRY": Code(ERROR, "entries lack something", "entries of `images` without `id` (counted from 0): 4", CHECK),
    "DATA-ID": Code(ERROR, "an id is not a whole number", "`id` in `images` that is not a whole number: '7'", CHECK),
    "DATA-ID-TWICE": Code(
        ERROR, "an id appears more than once", "ids that appear more than once in `images`: 7", CHECK,
    ),
    "DATA-ORPHAN": Code(
        ERROR, "an object belongs to an image or class that is not there",
        "`image_id` that is not in `images`: annotation 12 -> 404", f"{CHECK}, or set data.allow_orphans=true",
    ),
    "DATA-PATH-ESCAPE": Code(
        ERROR, "a file name leads out of the data folder", "image 9: '../../etc/passwd'",
        "write names as below the image folder (`check-data --fix` does); links out need data.follow_symlinks=true",
    ),
    "DATA-LABEL-LINE": Code(
        ERROR, "a line of a YOLO label file cannot be read", "a.txt line 3: 6 columns",
        "write: class cx cy width height, shares of the image's sides",
    ),
    "DATA-LABEL-FORM": Code(
        ERROR, "lines of a YOLO label file can be read in two ways, or hold what is no label",
        "lines of 11 columns are either outlines or boxes with keypoints: a.txt line 1",
        "write `kpt_shape: [K, D]` into data.yaml if they have keypoints, `kpt_shape: [0, 2]` if they are outlines, or "
        "cut them to class cx cy width height",
    ),
    "DATA-LABEL-NONE": Code(
        WARNING, "no image of a split has a YOLO label file",
        "none of 12 images has a label file, such as labels/a.txt", "put the label files there",
    ),
    "DATA-LABEL-LOST": Code(WARNING, "a label file has no image", "b.txt", "delete it, or put the image back"),
    "DATA-REGION-IGNORED": Code(
        NOTE, "regions in which nobody looked, as KITTI and VisDrone mark them, are skipped",
        "12 `DontCare` regions skipped",
    ),
    "DATA-CSV": Code(
        ERROR, "a row of a table of boxes cannot be read", "line 7: a.jpg,x,2,3,4,cell",
        "write filename,xmin,ymin,xmax,ymax,class with corners in pixels",
    ),
    "DATA-XML": Code(ERROR, "a Pascal VOC file cannot be read", "a.xml: not well-formed: line 7", "correct the file"),
    "DATA-VOC-NAME": Code(
        WARNING, "a Pascal VOC file names another image than its own name does; its own name counts",
        "0012.xml says 0007.jpg", "if `<filename>` is right, name the XML files after the images",
    ),
    "DATA-VOC-ORIGIN": Code(
        NOTE, "Pascal VOC's boxes don't show whether pixels count from 0 or 1", "no box touches the left or top edge",
        "if the tool that wrote them counts from 0, set data.voc_first_pixel=0",
    ),
    "DATA-FILLED": Code(NOTE, "left out of the file and filled in", "no `area` in 12 annotations: width x height"),
    "DATA-RESULTS": Code(
        ERROR, "a file of detections cannot be used, or is of other images or classes",
        "7 of 90 results are of 2 classes (category_id 0, 91) that val.json doesn't have",
        "give the data and --split that it was made from; --set data.allow_orphans=true leaves unknown ones out",
    ),
    "DATA-NOTHING": Code(
        ERROR, "there is nothing to learn", "3 images and no object to learn from",
        "see what else `dino check-data DIR` says",
    ),
}  # fmt: skip

BOXES = {
    "DATA-BOX": Code(ERROR, "a box is not four numbers", "annotation 4: [1, 2, 3]", CHECK),
    "DATA-BOX-NAN": Code(ERROR, "a box has a NaN or an infinity", "annotation 4711: [12, nan, 5, 5]", CHECK),
    "DATA-BOX-FLAT": Code(
        WARNING, "boxes have no width or height; not trained on", "annotation 4: [5, 5, 0, 9]", CHECK,
    ),
    "DATA-BOX-FLAT-MANY": Code(
        ERROR, "more than 5 % of the boxes have no width or height", "3 of 41 boxes",
        "COCO's `bbox` is x, y of the top left corner, width, height; VOC's min is less than max",
    ),
    "DATA-BOX-CORNERS": Code(
        ERROR, "boxes look like two corners", "19 of 20 boxes reach beyond their image; were they x0 y0 x1 y1?",
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
        WARNING, "boxes of at most 2 x 2 pixels: a slip of the mouse, mostly", "a.jpg [180, 328, 1, 1]",
        "look at them, and delete or redraw them",
    ),
    "DATA-BOX-TWICE": Code(
        WARNING, "two boxes of a class overlap to 90 % or more: labelled twice",
        "a.jpg cell [5, 5, 9, 9] ~ cell [5, 5, 9, 8]", "delete one of each pair",
    ),
    "DATA-BOX-TWO-CLASSES": Code(
        NOTE, "two boxes of different classes overlap to 90 % or more", "a.jpg car [5, 5, 9, 9] ~ truck [5, 5, 9, 8]",
        "look at them",
    ),
    "DATA-CROWD": Code(
        NOTE, "crowd regions, or VOC's `difficult` objects: ignored in training, used in evaluation", "14 annotations",
    ),
}  # fmt: skip

CLASSES = {
    "DATA-CLASS-UNKNOWN": Code(
        WARNING, "a class that training does not know; left out of evaluation", "star",
        "name them as training does, or train on images of them; classes are matched by name",
    ),
    "DATA-CLASS-UNUSED": Code(NOTE, "a class has no object to learn from", "star"),
    "DATA-CLASS-HEADING": Code(NOTE, "a category without objects that heads others is no class", "shapes"),
    "DATA-CLASS-FIRST": Code(
        WARNING, "a YOLO data set uses every class but the first", "no line has class 0, cat, and all others are there",
        "YOLO's classes count from 0; if the tool counted from 1, put a name before the others in `names`",
    ),
    "DATA-CLASS-CONTROL": Code(
        WARNING, "control characters are dropped from a class's name", r"'\x1b[31mcell' -> [31mcell",
        "write the name without them",
    ),
    "DATA-CLASS-RARE": Code(NOTE, "a class has fewer than 10 objects", "star: 3", "label more of them"),
    "DATA-CLASS-NAME": Code(
        WARNING, "two classes have one name and are taken for one", "disc: ids 1, 4", "merge or rename them"
    ),
    "DATA-CLASS-ALIKE": Code(
        WARNING, "names of two classes differ only in capitals, or in spaces, `-` and `_`",
        "Cat (2 objects) ~ cat (31 objects)",
        "if they are one class, give them one name in the annotations; or else it is learned as two",
    ),
}  # fmt: skip

IMAGES = {
    "DATA-IMAGE-MISSING": Code(
        ERROR, "an image is not there", "a.jpg",
        "check its name and folder; of a data set, put it back or take it out of the annotations"
    ),
    "DATA-IMAGE-DAMAGED": Code(ERROR, "an image is damaged", "a.jpg: image file is truncated", "copy it again"),
    "DATA-IMAGE-CUT": Code(
        WARNING, "a JPEG lacks its last bytes; the rows that are there, at least 95 %, are used",
        "a.jpg: 98 % of its rows", "copy it again",
    ),
    "DATA-IMAGE-FORMAT": Code(
        ERROR, "a file is no image that we read", "a.jpg is not an image in a known format",
        "see what it is with `file a.jpg`, save it as JPEG or PNG, or leave it out",
    ),
    "DATA-IMAGE-BANDS": Code(
        ERROR, "an image has bands that are neither colours nor transparency, or is an array; see docs/data.md",
        "a.tif has 8 bands; images of 1 band, of 3 colours, and of these with transparency are read",
        "make RGB of three of its bands",
    ),
    "DATA-IMAGE-CHANNELS": Code(
        NOTE, "images are not three bands of colour; what is made of them is said",
        "12 of 40 images are grey and get three equal bands",
    ),
    "DATA-IMAGE-LARGE": Code(
        ERROR, "an image has more pixels than data.max_pixels; not decoded", "a.png has 30000 x 30000 pixels",
        "scale it down or cut it into parts",
    ),
    "DATA-IMAGE-SIZE": Code(
        ERROR, "an image has another size than the annotations say", "a.jpg has 48 x 64 pixels, 64 x 48 are annotated",
        "correct the sizes; if boxes were drawn on images as stored, not turned by EXIF, set data.exif=false",
    ),
    "DATA-IMAGE-TURNED": Code(
        WARNING, "images are turned by EXIF, and labels without image sizes don't say whether boxes are, too",
        "4 images with boxes are turned by EXIF, and nothing shows whether the boxes were drawn on the upright image",
        "look at them with `dino inspect-data DIR`; if boxes were drawn on the pixels as stored, set data.exif=false",
    ),
    "DATA-IMAGE-NAME": Code(
        WARNING, "a file name differs from the one on the disk in capitals, spelling of Unicode or %20, or suffix",
        "Cell%201.JPG -> cell 1.jpg", "write the names as they are on the disk",
    ),
    "DATA-IMAGE-TWICE": Code(WARNING, "two entries have one file", "a.jpg: images 3 and 9", "merge them"),
    "DATA-IMAGE-UNLISTED": Code(NOTE, "images are in the folder and not in the annotations", "b.jpg"),
    "DATA-IMAGE-EMPTY": Code(NOTE, "images without objects: trained on as background", "a.jpg"),
    "DATA-IMAGE-FRAMES": Code(WARNING, "a file holds several images; the first counts", "a.gif: 12 frames"),
    "DATA-IMAGE-DARK": Code(WARNING, "an image is nearly black", "a.jpg: mean brightness 3 of 255", SEE),
    "DATA-IMAGE-BLANK": Code(WARNING, "an image is of one colour", "a.jpg: deviation 0.4 of 255", SEE),
    "DATA-IMAGE-ODD": Code(WARNING, "an image has an odd size", "a.jpg: 5000 x 12", SEE),
    "DATA-LEAK": Code(
        WARNING, "the same image is in two splits: evaluation flatters the model", "train a.jpg = val b.jpg",
        "take it out of one of them",
    ),
    "DATA-DUPLICATE": Code(WARNING, "the same image twice in a split", "a.jpg = b.jpg", "take one of them out"),
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
        WARNING, "an image has more objects than detections are kept", "a.jpg: 400 objects, 300 kept",
        "--set eval.max_dets=N, N at least the objects of that image",
    ),
    "MODEL-DENOISING": Code(
        NOTE, "an image has more objects than denoising takes: each step draws some of them", "a.jpg: 180 of 100",
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
        "see what AP says; small objects in large images are seen larger with --slice auto",
    ),
}  # fmt: skip
SECTIONS = {
    "Commands": GENERAL,
    "Files of annotations": FILES,
    "Boxes": BOXES,
    "Classes": CLASSES,
    "Images": IMAGES,
    "What data means for a model": MODEL,
}
CODES = {code: entry for section in SECTIONS.values() for code, entry in section.items()}

HEAD = ("| code | level | meaning | example | fix |", "|---|---|---|---|---|")
INTRO = """# Errors and findings

This page is made from `dinocore/error_codes.py`. An error ends a command; it reads

    error[DATA-BOX-NAN]: annotations whose `bbox` has a NaN or an infinity: annotation 4711: [12, nan, 5, 5]
      where: coco/annotations/instances_train2017.json
      fix: run `dino check-data DIR --fix fixed.json`, look at fixed.json.log, and use the copy

or, where no place has to be named, `error[CODE]: what; what to do` in one line;
with `--json` it is also an object on stdout: `{"error": {"code", "what", "where", "fix", "exit_code"}}`. Codes stay
as they are. Exit codes: 1 a bug or a failed export, 2 usage and config, 3 data, 4 checkpoint, 5 environment,
6 diverged, 7 some inputs failed, 130 and 143 interrupted. `dino check-data` finds the codes that begin with DATA and
MODEL: errors stop a training, warnings are said before it, notes are for you to know.
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
