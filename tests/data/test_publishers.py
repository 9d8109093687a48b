"""Datasets as publishers and tools ship them: read, or refused with a `dataset.toml` to paste or with export advice.

They contain the objects of TRAIN and VAL.
"""

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dinocore.config import DataConfig
from dinocore.data.annotations import read_annotations
from dinocore.data.dataset import open_dataset
from dinocore.data.formats.export import KINDS, write_dataset
from dinocore.data.formats.layout import find_layout
from dinocore.errors import DataError

WIDTH, HEIGHT = 100, 80
TRAIN = {"a": [("car", 10, 20, 30, 40)], "b": [("bus", 5, 6, 7, 8), ("car", 50, 8, 20, 30)], "c": []}
VAL = {"d": [("bus", 40, 30, 25, 20), ("car", 1, 2, 9, 9)]}
CLASSES = ["bus", "car"]
Objects = dict[str, list[tuple]]


def put(path: Path, text: str | bytes | None = None) -> Path:
    """Write text, bytes, or a JPEG image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        Image.new("RGB", (WIDTH, HEIGHT), "teal").save(path, "JPEG")
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def coco(objects: Objects, suffix=".jpg", prefix="", first=1, headings=()) -> str:
    ids = {name: n for n, name in enumerate([*headings, *CLASSES], start=first)}
    rows = [(n, *row) for n, rows in enumerate(objects.values()) for row in rows]
    return json.dumps({
        "images": [{"id": n, "file_name": f"{prefix}{name}{suffix}", "width": WIDTH, "height": HEIGHT}
                   for n, name in enumerate(objects)],
        "categories": [{"id": i, "name": name, "supercategory": "none" if name in headings else "vehicles"}
                       for name, i in ids.items()],
        "annotations": [{"id": n, "image_id": image, "category_id": ids[kind], "bbox": box, "area": box[2] * box[3],
                         "iscrowd": 0} for n, (image, kind, *box) in enumerate(rows, start=1)],
    })  # fmt: skip


def xml(name: str, rows: list[tuple], first=1) -> str:
    objects = "".join(
        f"<object><name>{kind}</name><bndbox><xmin>{x + first}</xmin><ymin>{y + first}</ymin><xmax>{x + w - 1 + first}"
        f"</xmax><ymax>{y + h - 1 + first}</ymax></bndbox></object>" for kind, x, y, w, h in rows
    )  # fmt: skip
    return (f"<annotation><filename>{name}</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            f"{objects}</annotation>")  # fmt: skip


def yolo(rows: list[tuple], classes=CLASSES) -> str:
    return "".join(
        f"{classes.index(k)} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}\n"
        for k, x, y, w, h in rows
    )


def flat(objects: Objects) -> list[tuple]:
    return [(name, *row) for name, rows in objects.items() for row in rows]


def write_images(folder: Path, names, suffix=".jpg") -> None:
    for name in names:
        put(folder / f"{name}{suffix}")


def roboflow_coco(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("valid", VAL)):
        write_images(folder / split, objects)
        put(folder / split / "_annotations.coco.json", coco(objects, first=0, headings=["vehicles"]))
    put(folder / "README.roboflow.txt", "exported")


def roboflow_voc(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("valid", VAL)):
        write_images(folder / split, objects)
        for name, rows in objects.items():
            put(folder / split / f"{name}.xml", xml(f"{name}.jpg", rows))


def roboflow_yolo(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("valid", VAL)):
        write_images(folder / split / "images", objects)
        for name, rows in objects.items():
            put(folder / split / "labels" / f"{name}.txt", yolo(rows))
    put(folder / "data.yaml", f"train: ../train/images\nval: ../valid/images\nnc: 2\nnames: {CLASSES}\n")


def roboflow_csv(folder: Path) -> None:
    """Roboflow calls this format TensorFlow Object Detection."""
    for split, objects in (("train", TRAIN), ("valid", VAL)):
        write_images(folder / split, objects)
        rows = [
            f"{n}.jpg,{WIDTH},{HEIGHT},{k},{x},{y},{x + w},{y + h}" for n, o in objects.items() for k, x, y, w, h in o
        ]
        put(folder / split / "_annotations.csv", "\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *rows]))


def kaggle_csv(folder: Path, header="image_id,width,height,bbox,label", name=lambda n: n) -> None:
    """As in Global Wheat Detection: image names without suffix, and x, y, width, height as a list."""
    for split, objects in (("train", TRAIN), ("val", VAL)):
        write_images(folder / split, [n for n, rows in objects.items()])
        rows = [f'{name(n)},{WIDTH},{HEIGHT},"[{x}.0, {y}.0, {w}.0, {h}.0]",{k}'
                for n, o in objects.items() for k, x, y, w, h in o]  # fmt: skip
        put(folder / f"{split}.csv", "\n".join([header, *rows]))
    put(folder / "sample_submission.csv", "image_id,PredictionString\na,1.0 0 0 50 50\n")


def kaggle_tabs(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("val", VAL)):
        write_images(folder / "images", objects)
        rows = [f"images/{n}.jpg\t{x}\t{y}\t{w}\t{h}\t{k}" for n, o in objects.items() for k, x, y, w, h in o]
        put(folder / f"{split}.csv", "\n".join(["image\tx\ty\tw\th\tcategory", *rows]))


def labelimg(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("val", VAL)):
        write_images(folder / "photos" / split, objects, ".JPG")
        for name, rows in objects.items():
            path = put(folder / "annots" / split / f"{name}.XML", xml(rf"C:\Users\me\{name}.JPG", rows))
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"><", b">\r\n<"))


def cvat_coco(folder: Path) -> None:
    write_images(folder / "images" / "default", {**TRAIN, **VAL})
    put(folder / "annotations" / "instances_default.json", coco(TRAIN | VAL))


def cvat_yolo(folder: Path) -> None:
    put(folder / "obj.names", "\r\n".join(CLASSES))
    put(folder / "obj.data", "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n")
    for split, objects in (("train", TRAIN), ("valid", VAL)):
        write_images(folder / f"obj_{split}_data", objects)
        for name, rows in objects.items():
            put(folder / f"obj_{split}_data" / f"{name}.txt", yolo(rows))
        put(folder / f"{split}.txt", "".join(f"data/obj_{split}_data/{name}.jpg\r\n" for name in objects))


def label_studio_yolo(folder: Path) -> None:
    write_images(folder / "images", {**TRAIN, **VAL})
    put(folder / "classes.txt", "\n".join(CLASSES))
    put(folder / "notes.json", json.dumps({"categories": [], "info": {}}))
    for name, rows in (TRAIN | VAL).items():
        put(folder / "labels" / f"{name}.txt", yolo(rows))


def labelimg_yolo(folder: Path, labels="", photos="", classes="classes.txt") -> None:
    """Images, a label file for each, and the class list, by default all in one folder."""
    write_images(folder / photos, TRAIN | VAL)
    for name, rows in (TRAIN | VAL).items():
        put(folder / labels / f"{name}.txt", yolo(rows))
    put(folder / labels / classes, "\n".join(CLASSES))


def labelimg_yolo_separate(folder: Path) -> None:
    labelimg_yolo(folder, "annots", "photos")


def labelimg_yolo_per_split(folder: Path) -> None:
    """The two folders list the classes in different orders."""
    for split, objects, classes in (("train", TRAIN, CLASSES), ("val", VAL, CLASSES[::-1])):
        write_images(folder / split, objects)
        for name, rows in objects.items():
            put(folder / split / f"{name}.txt", yolo(rows, classes))
        put(folder / split / "classes.txt", "\n".join(classes))


def roboflow_darknet(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("valid", VAL)):
        write_images(folder / split, objects)
        for name, rows in objects.items():
            put(folder / split / f"{name}.txt", yolo(rows))
        put(folder / split / "_darknet.labels", "\n".join(CLASSES))
    put(folder / "README.roboflow.txt", "exported")


def cvat_yolo_without_obj_data(folder: Path) -> None:
    cvat_yolo(folder)
    (folder / "obj.data").unlink()


def darknet_lists(folder: Path) -> None:
    """All images in one folder, and a list of images for each split."""
    labelimg_yolo(folder, classes="obj.names")
    for split, objects in (("train", TRAIN), ("val", VAL)):
        put(folder / f"{split}.txt", "".join(f"/home/me/data/{name}.jpg\n" for name in objects))


def open_images(folder: Path) -> None:
    codes = {"bus": "/m/01bjv", "car": "/m/0k4j"}
    put(folder / "metadata" / "class-descriptions-boxable.csv", "".join(f"{c},{n}\n" for n, c in codes.items()))
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction"
    for split, objects in (("train", TRAIN), ("validation", VAL)):
        write_images(folder / split, objects)
        rows = [f"{n},xclick,{codes[k]},1,{x / WIDTH},{(x + w) / WIDTH},{y / HEIGHT},{(y + h) / HEIGHT},0,0,0,0"
                for n, o in objects.items() for k, x, y, w, h in o]  # fmt: skip
        put(folder / f"{split}-annotations-bbox.csv", "\n".join([header, *rows]))


def visdrone(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("val", VAL)):
        top = folder / f"VisDrone2019-DET-{split}"
        write_images(top / "images", objects)
        for name, rows in objects.items():
            lines = [f"{x},{y},{w},{h},1,{dict(bus=9, car=4)[k]},0,0" for k, x, y, w, h in rows]
            put(top / "annotations" / f"{name}.txt", "\n".join([*lines, "0,0,50,50,0,0,0,0", "1,1,9,9,0,11,0,0,"]))


def kitti(folder: Path) -> None:
    for split, objects in (("training", TRAIN), ("validation", VAL)):
        write_images(folder / split / "image_2", objects, ".png")
        for name, rows in objects.items():
            lines = [f"{k} 0.00 0 -1.57 {x:.2f} {y:.2f} {x + w:.2f} {y + h:.2f} 1.6 1.7 3.9 1 2 40 -1.5"
                     for k, x, y, w, h in rows]  # fmt: skip
            ignored = "DontCare -1 -1 -10 0.00 0.00 50.00 60.00 -1 -1 -1 -1000 -1000 -1000 -10"
            put(folder / split / "label_2" / f"{name}.txt", "\n".join([*lines, ignored]))
    write_images(folder / "testing" / "image_2", ["e"], ".png")


def devkit(folder: Path) -> None:
    folder = folder / "VOCdevkit" / "VOC2012"
    write_images(folder / "JPEGImages", {**TRAIN, **VAL})
    for name, rows in (TRAIN | VAL).items():
        put(folder / "Annotations" / f"{name}.xml", xml(f"{name}.jpg", rows))
    put(folder / "ImageSets" / "Main" / "train.txt", "\n".join(TRAIN))
    put(folder / "ImageSets" / "Main" / "val.txt", "\r\n".join(VAL))
    put(folder / "ImageSets" / "Main" / "car_train.txt", "a 1\nb 1\nc -1\n")


def in_a_subfolder(folder: Path) -> None:
    put(folder / "README.md", "# my data")
    put(folder / "LICENSE", "MIT")
    put(folder / "__MACOSX" / "my-data" / "._data.yaml", b"\0\5\26\7")
    roboflow_yolo(folder / "my-data-master")


def uppercase_suffixes(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("val", VAL)):
        write_images(folder / f"{split}2017", objects)
        put(folder / "annotations" / f"instances_{split}2017.json", coco(objects).replace('.jpg"', '.JPG"'))


def semicolons(folder: Path) -> None:
    for split, objects in (("train", TRAIN), ("val", VAL)):
        write_images(folder / split, objects)
        rows = [
            rf"D:\data\{split}\{n}.jpg;{x};{y};{x + w};{y + h};{k}" for n, o in objects.items() for k, x, y, w, h in o
        ]
        text = "\r\n".join(["path;x1;y1;x2;y2;label", *rows])
        put(folder / f"{split}_labels.csv", text.encode("utf-16"))  # as some spreadsheets save it


READABLE: dict[str, tuple[Callable[[Path], None], bool]] = {  # and whether the format lists images without objects
    "Roboflow COCO": (roboflow_coco, True), "Roboflow VOC": (roboflow_voc, True),
    "Roboflow YOLO": (roboflow_yolo, True),
    "Roboflow CSV": (roboflow_csv, False), "Kaggle with bbox": (kaggle_csv, False),
    "Kaggle, tabs": (kaggle_tabs, False),
    "labelImg": (labelimg, True), "CVAT COCO": (cvat_coco, True), "CVAT YOLO": (cvat_yolo, True),
    "labelImg YOLO": (labelimg_yolo, True), "labelImg YOLO, separate folders": (labelimg_yolo_separate, True),
    "labelImg YOLO, per split": (labelimg_yolo_per_split, True), "Roboflow Darknet": (roboflow_darknet, True),
    "CVAT YOLO without obj.data": (cvat_yolo_without_obj_data, True), "Darknet, lists": (darknet_lists, True),
    "Label Studio YOLO": (label_studio_yolo, True), "Open Images": (open_images, False), "VisDrone": (visdrone, True),
    "KITTI": (kitti, True), "VOC devkit": (devkit, True), "in a subfolder": (in_a_subfolder, True),
    "suffixes in capitals": (uppercase_suffixes, True), "semicolons, UTF-16, Windows": (semicolons, False),
}  # fmt: skip


def objects_in(split) -> Objects:
    annotations = read_annotations(split)
    names = [category.name for category in annotations.categories]
    kinds = [names[label] for label in annotations.labels]
    rows = [(kind, *box) for kind, box in zip(kinds, annotations.boxes.round(3).tolist(), strict=True)]
    return {annotations.path(i).stem: sorted(rows[annotations.objects(i)]) for i in range(len(annotations.image_ids))}


def expected(objects: Objects, with_empty: bool) -> Objects:
    return {
        name: sorted((k, *map(float, box)) for k, *box in rows) for name, rows in objects.items() if rows or with_empty
    }


@pytest.mark.parametrize("name", READABLE)
def test_published_datasets_are_read_as_they_are(tmp_path, name):
    make, with_empty = READABLE[name]
    make(tmp_path)
    layout = find_layout(tmp_path)
    train, val = expected(TRAIN, with_empty), expected(VAL, with_empty)
    if layout.val is None:
        assert objects_in(layout.train) == train | val
    else:
        assert (objects_in(layout.train), objects_in(layout.val)) == (train, val)
    open_dataset(DataConfig(path=str(tmp_path)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READABLE)
def test_published_datasets_are_unchanged_by_conversion(tmp_path, name, kind):
    make, _ = READABLE[name]
    make(tmp_path / "in")
    layout = find_layout(tmp_path / "in")
    splits = {part: (read_annotations(split), split.format) for part, split in layout.splits().items()}
    list(write_dataset(splits, kind, tmp_path / "out", link=False))
    before, after = (
        {(part, file[-1]): rows for part, split in each.splits().items() for file, rows in objects_in(split).items()}
        for each in (layout, find_layout(tmp_path / "out"))
    )  # only the last letter: in VOC's one folder, the name of the former folder may be a prefix
    assert before == after and len(before) > 2


def test_ignored_regions_are_skipped_and_counted(tmp_path):
    visdrone(tmp_path / "v")
    kitti(tmp_path / "k")
    notes = [read_annotations(find_layout(tmp_path / name).train).notes for name in ("v", "k")]
    assert "skipped 6 regions and objects that are not evaluated" in notes[0]
    assert "3 `DontCare` regions skipped" in notes[1]


def test_a_group_in_open_images_is_a_crowd(tmp_path):
    open_images(tmp_path)
    file = tmp_path / "train-annotations-bbox.csv"
    first, row, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, row.replace(",0,0,0,0", ",0,0,1,0"), *rest]))
    annotations = read_annotations(find_layout(tmp_path).train)
    assert annotations.crowd.sum() == 1 and annotations.crowd[annotations.objects(0)].all()


def test_a_table_without_a_class_column_has_one_class_which_is_reported(tmp_path):
    kaggle_csv(tmp_path, header="image_id,width,height,bbox,source")
    train = read_annotations(find_layout(tmp_path).train)
    assert [c.name for c in train.categories] == ["object"] and any("no column names classes" in n for n in train.notes)


def test_paths_from_another_machine_with_equal_file_names_are_distinguished(tmp_path):
    for name in ("x", "y"):
        put(tmp_path / "images" / name / "a.jpg")
    rows = ["/content/images/x/a.jpg,1,2,11,12,car", "/content/images/y/a.jpg,5,6,15,16,bus"]
    put(tmp_path / "train.csv", "\n".join(["path,x1,y1,x2,y2,label", *rows]))
    annotations = read_annotations(find_layout(tmp_path).train)
    boxes = {annotations.path(i).parent.name: annotations.boxes[annotations.objects(i)].tolist() for i in range(2)}
    assert boxes == {"x": [[1, 2, 10, 10]], "y": [[5, 6, 10, 10]]}


def plain_yolo(folder: Path) -> None:
    write_images(folder / "photos", TRAIN)
    for name, rows in TRAIN.items():
        put(folder / "txt" / f"{name}.txt", yolo(rows))


def labelimg_yolo_in_folders(folder: Path) -> None:
    """Two folders with a class list each; it is unclear whether they are splits."""
    for day, names in (("monday", ["a", "c"]), ("tuesday", ["b"])):
        write_images(folder / day, names)
        for name in names:
            put(folder / day / f"{name}.txt", yolo(TRAIN[name]))
        put(folder / day / "classes.txt", "\n".join(CLASSES))


def two_years(folder: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        write_images(folder / year / "pics", TRAIN)
        for name, rows in TRAIN.items():
            put(folder / year / "xmls" / f"{name}.xml", xml(f"{name}.jpg", rows))


def two_files(folder: Path) -> None:
    write_images(folder / "images", TRAIN)
    for name in ("train_v1", "train_v2"):
        put(folder / f"{name}.json", coco(TRAIN))


def two_tables(folder: Path) -> None:
    write_images(folder, TRAIN)
    rows = [f"{n}.jpg,{x},{y},{x + w},{y + h},{k}" for n, o in TRAIN.items() for k, x, y, w, h in o]
    for name in ("train_a", "train_b"):
        put(folder / f"{name}.csv", "\n".join(["filename,xmin,ymin,xmax,ymax,class", *rows]))


@pytest.mark.parametrize("make", [plain_yolo, labelimg_yolo_in_folders, two_years, two_files, two_tables])
def test_the_error_suggests_a_dataset_toml_that_works(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        find_layout(tmp_path)
    assert caught.value.code == "DATA-LAYOUT"
    match = re.search(r"(?ms)^\s*format = .*\Z", caught.value.fix)
    assert match
    put(tmp_path / "dataset.toml", textwrap.dedent(match.group(0)))
    objects = objects_in(find_layout(tmp_path).train)
    boxes = {name: [row[1:] for row in rows] for name, rows in objects.items() if rows}
    assert boxes == {name: [tuple(map(float, row[1:])) for row in sorted(rows)] for name, rows in TRAIN.items() if rows}


def test_the_suggested_dataset_toml_has_the_class_names_unless_class_lists_differ(tmp_path):
    labelimg_yolo_in_folders(tmp_path)
    with pytest.raises(DataError) as caught:
        find_layout(tmp_path)
    assert 'names = ["bus", "car"]' in caught.value.fix and 'images = "."' in caught.value.fix
    put(tmp_path / "tuesday" / "classes.txt", "car\nbus\n")
    with pytest.raises(DataError) as caught:
        find_layout(tmp_path)
    assert "could start with" not in caught.value.fix


def test_the_suggested_dataset_toml_has_the_class_names_of_a_yaml_in_another_folder(tmp_path):
    plain_yolo(tmp_path)
    put(tmp_path / "configs" / "train.yaml", "lr: 0.1\n")
    put(tmp_path / "configs" / "mine.yml", "path: ..\ntrain: photos\nnames: {0: bus, 1: car}\n")
    with pytest.raises(DataError) as caught:
        find_layout(tmp_path)
    assert 'names = ["bus", "car"]' in caught.value.fix


@pytest.mark.parametrize(("content", "tool"), [
    ({"shapes": [], "imagePath": "a.jpg", "imageWidth": 9}, "labelme"),
    ({"description": "", "tags": [], "size": {}, "objects": []}, "Supervisely"),
    ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}], "Label Studio"),
    ([{"image": "a.jpg", "annotations": [{"label": "car", "coordinates": {}}]}], "CreateML"),
    ({"_via_img_metadata": {}, "_via_settings": {}}, "VGG Image Annotator"),
])  # fmt: skip
def test_json_of_another_tool_is_refused_with_export_advice(tmp_path, content, tool):
    write_images(tmp_path / "ds0" / "img", TRAIN)
    put(tmp_path / "ds0" / "ann" / "a.jpg.json", json.dumps(content))
    with pytest.raises(DataError, match=rf"3 \.jpg in .*looks like {tool}'s: export it as COCO, YOLO or Pascal VOC"):
        find_layout(tmp_path)


def error_for(folder: Path, name: str, content: str, tool: str) -> str:
    """The error message for a file of this tool; its fix has no `dataset.toml`."""
    write_images(folder / "photos", TRAIN)
    put(folder / name, content)
    with pytest.raises(DataError) as caught:
        find_layout(folder)
    assert f"{name} looks like {tool}" in caught.value.what and "could start with" not in caught.value.fix
    return caught.value.what


@pytest.mark.parametrize(("name", "content", "tool"), [
    ("via_project.json", '{"_via_settings": {}, "_via_img_metadata": {}}', "VGG Image Annotator's"),
    ("via.json", '{"a.jpg12": {"filename": "a.jpg", "size": 12, "regions": [], "file_attributes": {}}}', "VGG Image A"),
    ("via_3.json", '{"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}}', "VGG Image Annotator"),
    ("via.csv", "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
                'a.jpg,12,"{}",0,0,"{}","{}"\n', "VGG Image Annotator's"),
    ("annotations/default.json", '{"info": {}, "categories": {}, "items": []}', "Datumaro's"),
    ("project-1-min.json", '[{"image": "a.jpg", "id": 1, "label": [], "annotator": 1}]', "Label Studio's"),
    ("export.ndjson", '{"data_row": {"id": "a"}, "projects": {}}\n{"data_row": {}, "projects": {}}\n', "Labelbox's"),
    ("annotations.xml", "<annotations><version>1.1</version><image name='a.jpg'/></annotations>", "CVAT's"),
    ("train/annotations.xml", "<annotations><version>1.1</version><track id='0'/></annotations>", "CVAT's"),
    ("set 1/a.jpg.json", '{"metadata": {"name": "a.jpg"}, "instances": []}', "SuperAnnotate's"),
    ("8f2e-asset.json", '{"asset": {"name": "a.jpg"}, "regions": [], "version": "2.2.0"}', "VoTT's"),
    ("export.json", '[{"ID": "x", "Labeled Data": "a.jpg", "Label": {"objects": []}}]', "Labelbox's"),
    ("_annotations.txt", "a.jpg 1,2,30,40,0 5,6,50,60,1\n", "Roboflow's YOLO Darknet TXT"),
    ("a.jsonl", '{"image": "a.jpg", "prefix": "detect", "suffix": "<loc0001> bus"}', "Roboflow's PaliGemma"),
])  # fmt: skip
def test_files_of_another_tool_are_refused_with_export_advice_and_no_dataset_toml(tmp_path, name, content, tool):
    assert "export it as COCO" in error_for(tmp_path, name, content, tool)


@pytest.mark.parametrize(("name", "content", "tool"), [
    ("output.manifest", '{"source-ref": "s3://bucket/a.jpg"}\n', "SageMaker Ground Truth's"),
    ("train/metadata.jsonl", '{"file_name": "a.jpg", "objects": {"bbox": []}}\n', "Hugging Face's"),
    ("labels.xml", "<dataset><name>x</name><images></images></dataset>", "dlib's"),
    ("fine/a_polygons.json", '{"imgHeight": 24, "imgWidth": 32, "objects": []}', "Cityscapes'"),
    ("annotation_val.odgt", '{"ID": "a", "gtboxes": []}\n{"ID": "c", "gtboxes": []}\n', "CrowdHuman's"),
    ("test/MOT20-04/seqinfo.ini", "[Sequence]\n", "MOT Challenge's"),
    ("split/wider_face_val_bbx_gt.txt", "0--Parade/a.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n", "WIDER FACE's"),
    ("train/cells.tfrecord", "\0", "TensorFlow's TFRecord"),
    ("train.record-00000-of-00010", "\0", "TensorFlow's TFRecord"),
    ("labels/100k/a.json", '{"name": "a", "frames": [], "attributes": {}}', "BDD100K's"),
    ("labelTxt/a.txt", "imagesource:GoogleEarth\ngsd:0.1\n1 2 30 2 30 4 1 4 plane 0\n", "DOTA's"),
    ("labelTxt/a.txt", "1.0 2.0 30.0 2.0 30.0 4.0 1.0 4.0 plane 0\n", "DOTA's"),
    ("Anno/a.jpg.txt", "% bbGt version=3\nCar 1 2 30 40 0 0 0 0 0 0 0\n", "ExDark's"),
    ("Annotations/a.jpg.txt", "2\n1 10 20 40 60\n2 5 6 7 8\n", "WiderPerson's"),
    ("xView_train.geojson", '{"type": "FeatureCollection", "features": []}', "xView's"),
    ("GT/M0101_gt_whole.txt", "1,1,10,20,30,40,1,1,1\n", "a tracking benchmark's"),
    ("train.csv", "ImageId,EncodedPixels\na.jpg,264661 17 265429 33\n", "a table of run lengths"),
])  # fmt: skip
def test_files_that_cannot_be_exported_again_are_refused_with_conversion_advice(tmp_path, name, content, tool):
    assert re.search(r"convert it to COCO, YOLO or Pascal VOC \(.{15,}\)", error_for(tmp_path, name, content, tool))


@pytest.mark.parametrize("line", ["12 8 40 8 40 30 12 30 plane 0", "1,-1,12,8,40,30,1,-1,-1,-1", "3 12 8 40 30"])
def test_lines_that_are_not_yolo_do_not_suggest_a_yolo_dataset_toml(tmp_path, line):
    write_images(tmp_path / "photos", TRAIN)
    for name in TRAIN:
        put(tmp_path / "texts" / f"{name}.txt", f"{line}\n")
    with pytest.raises(DataError) as caught:
        find_layout(tmp_path)
    assert "could start with" not in caught.value.fix


def test_json_of_another_tool_under_a_coco_name_is_refused_with_the_tools_name(tmp_path):
    write_images(tmp_path, TRAIN)
    put(tmp_path / "train.json", '{"info": {}, "categories": {"label": {}}, "items": []}')
    with pytest.raises(DataError, match=r"not a COCO file; it looks like Datumaro's; export it as COCO.*datum convert"):
        read_annotations(find_layout(tmp_path).train)


def test_an_empty_class_list_is_refused(tmp_path):
    labelimg_yolo(tmp_path)
    put(tmp_path / "classes.txt", "\n")
    with pytest.raises(DataError, match=r"classes\.txt: the class list is empty; write the class names"):
        find_layout(tmp_path)


def test_an_ambiguous_class_list_is_refused(tmp_path):
    labelimg_yolo_per_split(tmp_path)
    write_images(tmp_path / "test", ["e"])
    put(tmp_path / "test" / "e.txt", yolo(VAL["d"]))
    with pytest.raises(DataError, match=r"train/classes\.txt, val/classes\.txt may each name the classes of .*test"):
        find_layout(tmp_path)


def test_labels_of_another_split_in_the_same_folder_are_not_reported_as_unmatched(tmp_path):
    darknet_lists(tmp_path)
    put(tmp_path / "lost.txt", yolo(VAL["d"]))
    splits = find_layout(tmp_path).splits()
    assert [*splits] == ["train", "val"] and objects_in(splits["val"]) == expected(VAL, True)
    for split in splits.values():
        assert read_annotations(split).notes == ["label files without an image: lost.txt"]


@pytest.mark.parametrize("name", ["train.csv", "classes.txt"])
def test_text_in_an_unknown_encoding_is_refused(tmp_path, name):
    """Decoding Latin-1 as UTF-8 would silently change the class name."""
    write_images(tmp_path / "images", ["a"])
    put(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n")
    text = "vélo\n" if name == "classes.txt" else "filename,xmin,ymin,xmax,ymax,class\na.jpg,1,2,3,4,vélo\n"
    put(tmp_path / name, text.encode("latin-1"))
    with pytest.raises(DataError, match=r"it is not UTF-8.*save it as UTF-8"):
        find_layout(tmp_path)
