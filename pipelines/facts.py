"""What the index says of one image: its size, hashes, and statistics."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import images
from pipelines.files import sha256_bytes
from pipelines.formats import Box, Item


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
    (Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000). Integers are summed exactly.
    """
    height, width, channels = pixels.shape
    scale = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
    count, flat = height * width, pixels.reshape(height, -1)
    total = _per_channel(flat, channels)
    mean = total / (count * scale)
    if pixels.dtype == np.uint8:
        squares = flat.astype(np.uint16)
        squares *= squares
        variance = _per_channel(squares, channels) / (count * scale**2) - mean**2
    else:
        variance = np.array([pixels[:, :, n].var(dtype=np.float64) for n in range(channels)]) / scale**2
    return {
        "width": width,
        "height": height,
        "channels": channels,
        "bits": pixels.dtype.itemsize * 8,
        "pixel_hash": _hash(pixels),
        "channel_mean": mean.tolist(),
        "channel_std": np.sqrt(np.maximum(variance, 0)).tolist(),
        "brightness": float(mean.mean()),
        "sharpness": _sharpness(pixels, scale),
    }


def _per_channel(flat: NDArray[Any], channels: int) -> NDArray[np.float64]:
    """Sum H x (W C) values per channel. Rows first: numpy sums along a short last axis ten times slower."""
    # 65,535 rows of squares of 8-bit values fit into 32 bits
    narrow = flat.dtype.kind == "u" and int(np.iinfo(flat.dtype).max) * len(flat) < 2**32
    kind = np.float64 if flat.dtype.kind == "f" else np.uint32 if narrow else np.uint64
    return np.asarray(flat.sum(0, dtype=kind).reshape(-1, channels).sum(0, dtype=np.float64))


def _hash(pixels: NDArray[Any]) -> str:
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _sharpness(pixels: NDArray[Any], scale: float) -> float:
    if min(pixels.shape[:2]) < 3:
        return 0.0
    channels = pixels.shape[2]
    # 8 times the sum of the channels is the widest that a Laplacian can be
    kind: Any = np.float64 if pixels.dtype.kind == "f" else np.int16 if 8 * scale * channels < 2**15 else np.int64
    grey = pixels[:, :, 0].astype(kind)
    for n in range(1, channels):
        grey += pixels[:, :, n]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1]
    laplacian += grey[1:-1, :-2]
    laplacian += grey[1:-1, 2:]
    laplacian -= 4 * grey[1:-1, 1:-1]
    if kind is np.int16:
        wide = laplacian.astype(np.int32)
        mean = wide.sum(dtype=np.int64) / wide.size
        wide *= wide
        variance = wide.sum(dtype=np.int64) / wide.size - mean**2
    else:
        variance = laplacian.var(dtype=np.float64)
    return float(max(variance, 0.0) / (scale * channels) ** 2)


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
