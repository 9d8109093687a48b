"""Images that are not RGB: how they are converted, and which are rejected.

All published weights were trained on RGB, and Pillow decodes at most four bands. The right three bands of a scientific
file depend on the data, so the choice is left to the user.
"""

from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

# TIFF tags: https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml
PHOTOMETRIC, SAMPLES, EXTRA = 262, 277, 338
COLOUR_BANDS = {2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # by photometric interpretation; 1 for all others
ALPHA = (1, 2)  # types of extra samples that are transparency
ARRAYS = (".npy", ".npz")
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NOT_READ = "{} has {} bands; dino reads grey and RGB images, with or without transparency"


def has_unknown_band(image: TiffImageFile) -> bool:
    """Whether a TIFF has a fourth band that is not transparency, such as infrared, which Pillow may treat as such."""
    return image.tag_v2.get(SAMPLES) == 4 and bool(_unknown_bands(image.tag_v2))


def conversion(image: Image.Image) -> str:
    """How an image is converted to RGB, for messages; an empty text if the conversion does not change colours."""
    if isinstance(image, TiffImageFile) and has_unknown_band(image):
        return "have a fourth band that is not transparency and is dropped"
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;"):
        return "are grey and become RGB"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return "have transparency and are composited over white"
    return "" if image.mode in ("RGB", "P") else f"are {image.mode} and are converted to RGB"


def refusal(image: TiffImageFile, path: Path) -> tuple[str, str] | None:
    """Why the bands of a TIFF that Pillow opens cannot be used, and the fix; None if they can.

    Depending on the number of bits, Pillow would use the first bands of such files, or reject them.
    """
    number = int(image.tag_v2.get(SAMPLES, 1))
    usable = not _unknown_bands(image.tag_v2) or (number == 4 and image.tag_v2.get(PHOTOMETRIC) == 2)
    return None if usable else (NOT_READ.format(path, number), _tiff_fix(path))


def refusal_of_unknown(path: Path) -> tuple[str, str] | None:
    """Like `refusal`, for a file that Pillow cannot open: a numpy array or a TIFF with many bands; otherwise None."""
    if path.suffix.lower() in ARRAYS:
        load = f"np.load({path.as_posix()!r})" + ("['arr_0']" if path.suffix.lower() == ".npz" else "")
        save = f"Image.fromarray({load}[..., :3].astype('uint8')).save({path.with_suffix('.png').as_posix()!r})"
        what = f"{path} is a numpy array, not an image, and does not say which bands are red, green and blue"
        fix = f'choose three bands, scaled to 0 … 255: python -c "import numpy as np; from PIL import Image; {save}"'
        return what, fix
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
    return (NOT_READ.format(path, number), _tiff_fix(path)) if number in (2, *range(4, 65536)) else None


def _unknown_bands(tags: ImageFileDirectory_v2) -> list[int]:
    """The types of bands that are neither colours nor transparency."""
    extra = int(tags.get(SAMPLES, 1)) - COLOUR_BANDS.get(int(tags.get(PHOTOMETRIC, 1)), 1)
    declared = tags.get(EXTRA, ())
    kinds = list(declared if isinstance(declared, tuple) else (declared,))
    return [kind for kind in (kinds + [0] * extra)[: max(extra, 0)] if kind not in ALPHA]


def _tiff_fix(path: Path) -> str:
    out = path.with_suffix(".rgb.tif")
    return f"choose three bands: gdal_translate -b 1 -b 2 -b 3 -scale -ot Byte {path} {out}"
