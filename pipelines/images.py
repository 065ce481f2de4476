"""Decodes image files into arrays."""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 100_000_000  # a larger image is taken for a decompression bomb


class ImageError(ValueError):
    """An image that cannot be used; the message is the reason, for people."""


def decode(data: bytes) -> NDArray[Any]:
    """Return an encoded image as H x W x C: uint8 or uint16; EXIF-rotated upright, alpha dropped, palettes resolved.

    Raises ImageError with a reason for anything that is not a whole image of at most MAX_PIXELS pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise ImageError("the file is empty (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are taken")
                image.load()
                array = _array(ImageOps.exif_transpose(image))
        except ImageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ImageError(f"more than {MAX_PIXELS:,} pixels; it is taken for a decompression bomb") from None
        except UnidentifiedImageError:
            raise ImageError("not an image in a known format") from None
        except Exception as error:  # Pillow's decoders raise many kinds on broken files
            raise ImageError(f"cannot be decoded: {error}") from None
    return array


def _array(image: Any) -> NDArray[Any]:
    if image.mode == "I" or image.mode.startswith("I;16"):
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise ImageError("32-bit pixel values; 8 or 16 bit are taken")
        array = array.astype(np.uint16)
    elif image.mode in ("1", "L", "LA", "La"):
        array = np.asarray(image.convert("L"))
    elif image.mode == "F":
        raise ImageError("floating-point pixels; 8 or 16 bit are taken")
    else:
        array = np.asarray(image.convert("RGB"))
    return array[:, :, None] if array.ndim == 2 else array
