"""Decodes image files into arrays: JPEG, PNG, WebP, BMP, TIFF of any number of channels, and .npy.

Travels in every bundle; a bundle needs tifffile and imagecodecs for TIFF and 16-bit colour only.
"""

import contextlib
import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

with contextlib.suppress(ImportError):  # .npy needs no Pillow
    # Before another library puts a function of its own there: Ultralytics' installs a package for what is no image.
    from PIL.Image import open as open_image

MAX_PIXELS = 100_000_000  # a larger image is taken for a decompression bomb
MAX_VALUES = 4 * MAX_PIXELS  # pixels times channels
MAX_CHANNELS = 256
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # no other decoder of Pillow sees a byte (EPS runs a program)
KNOWN = "JPEG, PNG, WebP, BMP, TIFF, .npy"
ORIENTATION = 0x0112  # the EXIF and TIFF tag


class ImageError(ValueError):
    """An image that cannot be used; the message is the reason, for people."""


def decode_image(data: bytes) -> NDArray[Any]:
    """Return an encoded image as H x W x C: uint8, uint16, or float32 (from .npy and float TIFF).

    EXIF-rotated upright, alpha dropped, palettes resolved. The pages or bands of a TIFF are channels.
    Raises ImageError with a reason for anything that is not a whole image of at most MAX_PIXELS pixels.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    try:
        if data[:6] == b"\x93NUMPY":
            array = _npy(data)
        elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            array = _tiff(data)
        else:
            array = _pillow(data)
    except (ImageError, ImportError):
        raise
    except Exception as error:  # decoders raise many kinds on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot be decoded: {reason}") from None
    return _checked(array)


def _pillow(data: bytes) -> NDArray[Any]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with open_image(io.BytesIO(data), formats=FORMATS) as image:
                _fits(image.height, image.width, 1)
                if data[:4] == b"\x89PNG" and data[24] == 16 and data[25] != 0:
                    return _png16(data, image.getexif().get(ORIENTATION, 1))
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _array(image)
        except UnidentifiedImageError:
            raise ImageError(f"not an image in a known format ({KNOWN})") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ImageError(f"more than {MAX_PIXELS:,} pixels; it is taken for a decompression bomb") from None


def _array(image: Any) -> NDArray[Any]:
    """Return Pillow's image as an array, with one copy at most."""
    if image.mode not in ("L", "RGB", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    return np.asarray(image)


def _png16(data: bytes, orientation: int) -> NDArray[Any]:
    """Decode a PNG of 16-bit colour, which Pillow would silently bring to 8 bits."""
    import imagecodecs

    array = np.asarray(imagecodecs.png_decode(data))
    return _upright(array[:, :, : array.shape[2] - 1] if array.shape[2] in (2, 4) else array, orientation)


def _tiff(data: bytes) -> NDArray[Any]:
    import logging

    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs is raised, too
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if not file.pages:
            raise ImageError("a TIFF without an image")
        page = file.pages.first
        if int(page.photometric) not in (1, 2) or page.bitspersample not in (8, 16, 32, 64):
            return _pillow(data)  # palettes, inverted, CMYK, YCbCr, 1 bit
        series = [s for s in file.series if not s.keyframe.is_reduced]
        if len(series) != 1:
            sizes = sorted({f"{s.keyframe.imagewidth}x{s.keyframe.imagelength}" for s in series})
            raise ImageError(f"pages of different kinds ({', '.join(sizes)}); the pages are taken as channels")
        axes, shape = series[0].axes, series[0].shape
        if "Y" not in axes or "X" not in axes:
            raise ImageError(f"a TIFF with axes {axes}; height and width are needed")
        _fits(page.imagelength, page.imagewidth, int(np.prod(shape)) // (page.imagelength * page.imagewidth))
        array = series[0].asarray()
        array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (0, 1)).reshape(*_sides(axes, shape), -1)
        alpha = [n for n, kind in enumerate(page.extrasamples) if int(kind) in (1, 2)]
        if alpha and page.samplesperpixel == array.shape[2]:
            colours = page.samplesperpixel - len(page.extrasamples)
            array = np.delete(array, [colours + n for n in alpha], 2)
        tag = page.tags.get(ORIENTATION)
        return _upright(array, int(tag.value) if tag else 1)


def _sides(axes: str, shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[axes.index("Y")], shape[axes.index("X")]


def _npy(data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ImageError("an array of Python objects; numbers are taken")
    if len(shape) not in (2, 3):
        raise ImageError(f"an array of shape {shape}; height x width x channels is wanted")
    wanted, held = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, len(data) - file.tell()
    if wanted != held:
        raise ImageError(
            f"the header promises {wanted:,} bytes of values, the file holds {held:,}; it is cut or broken"
        )
    _fits(shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
    file.seek(0)
    return np.asarray(np.load(file, allow_pickle=False))


def _fits(height: int, width: int, channels: int) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels; at most {MAX_PIXELS:,} are taken")
    if channels > MAX_CHANNELS or height * width * channels > MAX_VALUES:
        raise ImageError(f"{width}x{height} pixels of {channels} channels; at most {MAX_CHANNELS} channels are taken")


def _checked(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as H x W x C in one of the three dtypes that the stages take."""
    if array.ndim == 2:
        array = array[:, :, None]
    if 0 in array.shape:
        raise ImageError(f"an image of {array.shape[1]}x{array.shape[0]} pixels and {array.shape[2]} channels")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ImageError("NaN or infinite values; every value must be a number")
        return np.ascontiguousarray(array, np.float32)
    if array.dtype == np.int32 and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)  # Pillow's mode I
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"pixels of type {array.dtype}; 8 or 16 bit unsigned, or floating point, are taken")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo one of the eight orientations of EXIF 2.3 (4.6.4, Orientation)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array
