"""Looks at one item of a source, in a worker process: its row of the index, or why it is left out."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines import images
from pipelines.facts import measure
from pipelines.files import sha256_bytes
from pipelines.formats import Box, Item
from pipelines.kept import Kept, stamp_of
from pipelines.known import Known


@dataclass(frozen=True)
class Outcome:
    """One item looked at: the row of the index and the encoded bytes, or the `problem` that keeps it out."""

    path: str
    row: dict[str, Any] | None = None
    payload: bytes = b""
    problem: str = ""
    stamp: str | None = None  # by which the next run knows the file
    read: bool = False  # whether the source was
    fresh: tuple[str, dict[str, Any]] | None = None  # content hash and facts of an image that had to be decoded


def inspect(item: Item, channels: int, bits: int, known: Known, kept: Kept) -> Outcome:
    """Look at one item.

    The bytes of a file that has not changed since the last run come from `kept`; what is known of bytes, from `known`.
    """
    if item.problem:
        return Outcome(item.path, problem=item.problem)
    try:
        stamp = None if item.file is None else stamp_of(item.file)
        place = known.place(item.path, stamp) if stamp else None
        payload = kept.read(place) if place else None
        read = payload is None
        if payload is None:
            payload = item.data if item.data is not None else item.file.read_bytes()  # type: ignore[union-attr]
    except OSError as error:
        return Outcome(item.path, problem=f"cannot be read: {error.strerror}")
    content = sha256_bytes(payload) if read or place is None else place.content
    facts, fresh = known.get(content), None
    if facts is None:
        try:
            facts = measure(images.decode_image(payload))
        except images.ImageError as error:
            facts = {"problem": str(error)}
        fresh = (content, facts)
    problem = facts.get("problem") or _mismatch(facts, channels, bits)
    boxes = None
    if item.boxes is not None and not problem:
        boxes = [_pixels(box, facts, item.relative) for box in item.boxes]
        problem = next((reason for box in boxes if (reason := _wrong(box, facts))), "")
    if problem:
        return Outcome(item.path, problem=problem, read=read, fresh=fresh)
    row = {
        **facts,
        "path": item.path,
        "bytes": len(payload),
        "content_hash": content,
        "split": item.split,
        "label": item.label,
        "boxes": boxes,
    }
    return Outcome(item.path, row, payload, stamp=stamp, read=read, fresh=fresh)


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
