"""Images that are not RGB: how they are converted, and which are refused.

Models here see RGB: every published weight was trained on it, and Pillow decodes at most four bands. Three of the bands
of a scientific file can be chosen in many ways, so that is left to whoever knows them.
"""

from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

PHOTOMETRIC, SAMPLES, EXTRA = (
    262,
    277,
    338,
)  # TIFF's tags: https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml
COLOUR_BANDS = {2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # by photometric interpretation; 1 of any other
ALPHA = (1, 2)  # of the extra samples those that are a transparency
ARRAYS = (".npy", ".npz")
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NOT_READ = "{} has {} bands; dino reads grey and RGB images, with or without transparency"


def has_unknown_band(image: TiffImageFile) -> bool:
    """Whether a TIFF has a fourth band that is no transparency, such as infrared, which Pillow may take for one."""
    return image.tag_v2.get(SAMPLES) == 4 and bool(_unknown(image.tag_v2))


def conversion(image: Image.Image) -> str:
    """What is done to make RGB of an image, in words; an empty text where nothing of it is lost or made up."""
    if isinstance(image, TiffImageFile) and has_unknown_band(image):
        return "have a fourth band that is not transparency and is dropped"
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;"):
        return "are grey and become RGB"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return "have transparency and are composited over white"
    return "" if image.mode in ("RGB", "P") else f"are {image.mode} and are converted to RGB"


def refusal(image: TiffImageFile, path: Path) -> tuple[str, str] | None:
    """Why the bands of a TIFF that Pillow opens cannot be used, and what to type; None where they can.

    Pillow would take the first bands of some files and refuse others, by their number of bits.
    """
    number = int(image.tag_v2.get(SAMPLES, 1))
    good = not _unknown(image.tag_v2) or (number == 4 and image.tag_v2.get(PHOTOMETRIC) == 2)
    return None if good else (NOT_READ.format(path, number), _of_tiff(path))


def refusal_of_unknown(path: Path) -> tuple[str, str] | None:
    """The same for a file that Pillow does not open: an array of numpy's, or a TIFF of many bands; None of another."""
    if path.suffix.lower() in ARRAYS:
        load = f"np.load({path.as_posix()!r})" + ("['arr_0']" if path.suffix.lower() == ".npz" else "")
        save = f"Image.fromarray({load}[..., :3].astype('uint8')).save({path.with_suffix('.png').as_posix()!r})"
        what = f"{path} is a numpy array, not an image, and does not say which bands are red, green and blue"
        return (
            what,
            f'choose three bands, scaled to 0 … 255: python -c "import numpy as np; from PIL import Image; {save}"',
        )
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head[:4] not in TIFFS:
                return None
            directory = ImageFileDirectory_v2(head)
            file.seek(directory.next)
            directory.load(file)
        number = int(directory.get(SAMPLES, 1))
    except (OSError, ValueError, SyntaxError, TypeError, LookupError):
        return None
    return (NOT_READ.format(path, number), _of_tiff(path)) if number in (2, *range(4, 65536)) else None


def _unknown(tags: ImageFileDirectory_v2) -> list[int]:
    """Kinds of the bands that are neither colours nor transparency."""
    extra = int(tags.get(SAMPLES, 1)) - COLOUR_BANDS.get(int(tags.get(PHOTOMETRIC, 1)), 1)
    declared = tags.get(EXTRA, ())
    kinds = list(declared if isinstance(declared, tuple) else (declared,))
    return [kind for kind in (kinds + [0] * extra)[: max(extra, 0)] if kind not in ALPHA]


def _of_tiff(path: Path) -> str:
    out = path.with_suffix(".rgb.tif")
    return f"choose three bands: gdal_translate -b 1 -b 2 -b 3 -scale -ot Byte {path} {out}"
