"""What the index says of one image: its size, hashes, and statistics."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import images
from pipelines.files import sha256_bytes
from pipelines.formats import Box, Item

STRIP = 2**16  # values of an image that are summed at once
STRIPS = 4  # of a larger image of 8 bits as many are summed, evenly spread: its statistics are those of a sample


@dataclass(frozen=True)
class Outcome:
    """One item looked at: the row of the index and the encoded bytes, or the `problem` that keeps it out."""

    path: str
    row: dict[str, Any] | None = None
    payload: bytes = b""
    problem: str = ""
    fresh: tuple[str, dict[str, Any]] | None = None  # content hash and facts of an image that had to be decoded


def inspect(item: Item, channels: int, bits: int, known: dict[str, dict[str, Any]] | Any) -> Outcome:
    """Look at one item; the facts of its bytes are taken from `known`, by content hash, where they stand there."""
    if item.problem:
        return Outcome(item.path, problem=item.problem)
    try:
        payload = item.data if item.data is not None else item.file.read_bytes()  # type: ignore[union-attr]
    except OSError as error:
        return Outcome(item.path, problem=f"cannot be read: {error.strerror}")
    content = sha256_bytes(payload)
    facts, fresh = known.get(content), None
    if facts is None:
        try:
            facts = measure(images.decode(payload))
        except images.ImageError as error:
            facts = {"problem": str(error)}
        fresh = (content, facts)
    problem = facts.get("problem") or _mismatch(facts, channels, bits)
    boxes = None
    if item.boxes is not None and not problem:
        boxes = [_pixels(box, facts, item.relative) for box in item.boxes]
        problem = next((reason for box in boxes if (reason := _wrong(box, facts))), "")
    if problem:
        return Outcome(item.path, problem=problem, fresh=fresh)
    row = {
        **facts,
        "path": item.path,
        "bytes": len(payload),
        "content_hash": content,
        "split": item.split,
        "label": item.label,
        "boxes": boxes,
    }
    return Outcome(item.path, row, payload, fresh=fresh)


def measure(pixels: NDArray[Any]) -> dict[str, Any]:
    """Return the facts of decoded pixels, H x W x C; statistics in shares of full scale (floats: as they are).

    Brightness is the mean over all channels. Sharpness is the variance of the Laplacian of the mean channel
    (Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000). Of an 8-bit image of more than
    STRIPS x STRIP values, all of them are statistics of that many values, in strips of whole rows.
    """
    height, width, channels = pixels.shape
    scale = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
    # 4 times the sum of the channels is the widest that a Laplacian can be
    small = pixels.dtype == np.uint8 and 4 * 255 * channels < 2**15
    mean, variance, laplacian = (_sums8 if small else _sums)(pixels)
    mean, variance = mean / scale, variance / scale**2
    return {
        "width": width,
        "height": height,
        "channels": channels,
        "bits": pixels.dtype.itemsize * 8,
        "pixel_hash": _hash(pixels),
        "channel_mean": mean.tolist(),
        "channel_std": np.sqrt(np.maximum(variance, 0)).tolist(),
        "brightness": float(mean.mean()),
        "sharpness": float(max(laplacian, 0.0) / (scale * channels) ** 2),
    }


def _sums(pixels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return mean and variance of each channel, and the variance of the Laplacian of the channels' sum."""
    exact = np.float64 if pixels.dtype.kind == "f" else np.int64
    planes = [pixels[:, :, n].astype(exact) for n in range(pixels.shape[2])]
    mean = np.array([plane.mean(dtype=np.float64) for plane in planes])
    variance = np.array([plane.var(dtype=np.float64) for plane in planes])
    laplacian = _laplacian(sum(planes[1:], planes[0]))
    return mean, variance, float(laplacian.var(dtype=np.float64)) if laplacian.size else 0.0


def _sums8(pixels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Do as `_sums`, for 8 bits: in whole numbers, and in strips of rows that stay in the processor's cache."""
    height, width, channels = pixels.shape
    total, squares = np.zeros((2, width * channels), np.uint64)
    first = second = count = rows = 0
    step = max(STRIP // (width * channels), 1)
    tops = range(0, height, step)
    for top in tops if len(tops) <= STRIPS else [tops[n * len(tops) // STRIPS] for n in range(STRIPS)]:
        flat = pixels[top : top + step].reshape(-1, width * channels)
        rows += len(flat)
        total += flat.sum(0, dtype=np.uint32)  # rows first: numpy sums along a short last axis ten times slower
        wide = flat.astype(np.uint16)
        wide *= wide
        squares += wide.sum(0, dtype=np.uint32)
        strip = pixels[top : top + step + 2]  # two rows more, so that strips meet without a seam
        grey = strip[:, :, 0].astype(np.int16)
        for n in range(1, channels):
            grey += strip[:, :, n]
        found = _laplacian(grey).astype(np.int32)
        first += int(found.sum(dtype=np.int64))
        found *= found
        second += int(found.sum(dtype=np.int64))
        count += found.size
    mean, mean_square = (v.reshape(-1, channels).sum(0, dtype=np.uint64) / (rows * width) for v in (total, squares))
    return mean, mean_square - mean**2, second / count - (first / count) ** 2 if count else 0.0


def _laplacian(grey: NDArray[Any]) -> NDArray[Any]:
    """Return the sum of the four neighbours less four times the pixel; empty where there are no neighbours."""
    if min(grey.shape) < 3:
        return grey[:0]
    found: NDArray[Any] = grey[:-2, 1:-1] + grey[2:, 1:-1]
    found += grey[1:-1, :-2]
    found += grey[1:-1, 2:]
    found -= 4 * grey[1:-1, 1:-1]
    return found


def _hash(pixels: NDArray[Any]) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _mismatch(facts: dict[str, Any], channels: int, bits: int) -> str:
    """Say how an image differs from what `data` declares. Grey is taken where colour is: as three equal channels."""
    if facts["channels"] != channels and not (facts["channels"] == 1 and channels == 3):
        return f"has {facts['channels']} channel(s); data.channels is {channels}"
    if facts["bits"] != bits:
        return f"has {facts['bits']} bits per channel; data.bits is {bits}"
    return ""


def _pixels(box: Box, facts: dict[str, Any], relative: bool) -> Box:
    if not relative:
        return box
    width, height = facts["width"], facts["height"]
    return Box(box.x * width, box.y * height, box.width * width, box.height * height, box.label)


def _wrong(box: Box, facts: dict[str, Any]) -> str:
    """Say why a box is none. A box that only sticks out of its image is left to the contract."""
    where = f"box of '{box.label}' ({box.x:g}, {box.y:g}, {box.width:g} x {box.height:g})"
    if not np.isfinite((box.x, box.y, box.width, box.height)).all():
        return f"{where}: a side is no number"
    if box.width <= 0 or box.height <= 0:
        return f"{where}: reversed or without area"
    if box.x >= facts["width"] or box.y >= facts["height"] or box.x + box.width <= 0 or box.y + box.height <= 0:
        return f"{where}: wholly outside the image of {facts['width']} x {facts['height']}"
    return ""
