"""From a decoded image to a model's input. Needs numpy alone, and travels in every bundle as it is."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAD = 114 / 255  # the grey of letterbox borders, as a share of full scale; the value that YOLO models train with


@dataclass(frozen=True)
class Preprocess:
    """What is done to an image before the model: resize, scale to 0..1, normalize, channels first.

    `height` and `width` in pixels; `resize` is `stretch` or `letterbox`; `antialias` smooths an image that shrinks;
    `full_scale` is the value that becomes 1.0 (255 for 8 bit, 65535 for 16 bit, 1 for floating point); `mean` and `std`
    per channel, after scaling.
    """

    channels: int
    height: int
    width: int
    resize: str
    full_scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    antialias: bool = True

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Preprocess":
        """Build it from the JSON that `to_dict` wrote."""
        return cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def pixels(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the image, H x W x C, resized to `height` x `width`, in the same dtype.

        Grey is taken where colour is wanted, as three equal channels. Raises ValueError on other channels.
        """
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim == 3 and image.shape[2] == 1 and self.channels == 3:
            image = np.repeat(image, 3, 2)
        if image.ndim != 3 or image.shape[2] != self.channels:
            raise ValueError(f"the image has shape {image.shape}; the model takes {self.channels} channel(s)")
        if image.shape[:2] == (self.height, self.width):
            return image
        if self.resize == "stretch":
            return resize(image, self.height, self.width, self.antialias)
        top, left, height, width = letterbox(image.shape[0], image.shape[1], self.height, self.width)
        pad = self.full_scale * PAD
        canvas = np.full((self.height, self.width, self.channels), pad, np.float64)
        canvas[top : top + height, left : left + width] = resize(image, height, width, self.antialias)
        return _as_dtype(canvas, image.dtype)

    def normalize(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return resized pixels, H x W x C, as a float32 array C x H x W: (pixels / full_scale - mean) / std."""
        scaled = pixels.astype(np.float32) / np.float32(self.full_scale)
        normal = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1))

    def place(self, corners: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
        """Return boxes of an image of `height` x `width` (N x 4: left, top, right, bottom) in pixels of the input."""
        scale, offset = self._frame(height, width)
        return corners * scale + offset

    def restore(self, corners: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
        """Return boxes in pixels of the input (N x 4) in those of an image of `height` x `width`, cut at its edges."""
        scale, offset = self._frame(height, width)
        return np.asarray(np.clip((corners - offset) / scale, 0, np.array([width, height] * 2)))

    def _frame(self, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        top, left, high, wide = 0, 0, self.height, self.width
        if self.resize == "letterbox":
            top, left, high, wide = letterbox(height, width, self.height, self.width)
        return np.array([wide / width, high / height] * 2), np.array([left, top] * 2, np.float64)

    def __call__(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Return one image, H x W x C, as the model's input, C x H x W in float32."""
        return self.normalize(self.pixels(image))


def letterbox(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width, in pixels, of an image fitted into a larger frame, centred."""
    ratio = min(to_height / height, to_width / width)
    new_height, new_width = max(1, round(height * ratio)), max(1, round(width * ratio))
    return (to_height - new_height) // 2, (to_width - new_width) // 2, new_height, new_width


def resize(image: NDArray[Any], height: int, width: int, antialias: bool = True) -> NDArray[Any]:
    """Resize H x W x C to `height` x `width` with a triangle filter, which `antialias` widens when shrinking.

    The weights are those of Pillow's BILINEAR resampling (Image.resize), without antialiasing those of OpenCV's
    INTER_LINEAR (cv2.resize), in float64 instead of fixed point. The sums are written out, not left to a matrix
    product, whose order of adding differs between processors.
    """
    _, before, channels = image.shape
    rows = np.zeros((height, before * channels))
    for index, weights in _taps(image.shape[0], height, antialias):
        rows += image[index].reshape(height, -1) * weights[:, None]
    found = np.zeros((height, width, channels))
    across = rows.reshape(height, before, channels)
    for index, weights in _taps(before, width, antialias):
        found += across[:, index] * weights[:, None]
    return _as_dtype(found, image.dtype)


def _taps(source: int, target: int, antialias: bool) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return what each target pixel is the sum of: a source pixel and its weight, for every tap of the filter."""
    scale = source / target
    reach = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(target) + 0.5) * scale
    index = np.floor(centres - reach).astype(np.int64)[:, None] + np.arange(2 * int(np.ceil(reach)) + 1)
    weights = np.maximum(0.0, 1.0 - np.abs(index + 0.5 - centres[:, None]) / reach)
    weights[(index < 0) | (index >= source)] = 0.0
    weights /= weights.sum(1, keepdims=True)
    return list(zip(index.clip(0, source - 1).T, weights.T, strict=True))


def _as_dtype(image: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        image = np.clip(np.rint(image), info.min, info.max)
    return image.astype(dtype)
