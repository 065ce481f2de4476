"""Small sources in every data format, and `prepare` on them."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from pipelines import prepare
from pipelines.data import Dataset

BOX = (4.0, 6.0, 10.0, 8.0)  # left, top, width, height
SIZE = (32, 24)  # width, height
CONTRACT = {
    "edge": {"level": "error", "min": 4, "max": 100},
    "channels": {"level": "error", "value": 3},
    "bits": {"level": "error", "value": 8},
    "brightness": {"level": "warn", "min": 0.0, "max": 1.0},
    "sharpness": {"level": "warn", "min": 0.0, "max": 100.0},
    "unreadable": {"level": "error", "max": 0.0},
    "known_class": "error",
    "per_class": {"level": "error", "min": 1},
    "balance": {"level": "warn", "max": 2.0},
    "duplicates": "error",
    "boxes": None,
    "drift": None,
}


def pixels(seed: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """Return noise, H x W x C."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (*SIZE[::-1], channels), dtype, endpoint=True)


def picture(path: Path, seed: int) -> Path:
    """Write a PNG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)
    return path


def run(source: dict, task: str = "classification", out: str = "data", **data) -> Dataset:
    """Run `prepare` on a source in the current folder, with `data` changed; return what it wrote."""
    section = {
        "source": source,
        "channels": 3,
        "bits": 8,
        "splits": {"val": 0.25, "test": 0.25},
        "max_rejected": 0.9,
        **data,
    }
    contract = {**CONTRACT, "boxes": BOXES if task == "detection" else None}
    Path("params.yaml").write_text(
        yaml.safe_dump({"task": task, "seed": 0, "data": section, "contract": contract}, sort_keys=False)
    )
    prepare.main(Path(out))
    return Dataset(Path(out))


BOXES = {"outside": {"level": "error", "max": 1.0}, "area": {"level": "error", "min": 4}}


def rejected(out: str = "data") -> dict[str, str]:
    """Return what was left out: reasons by path."""
    return {one["path"]: one["reason"] for one in json.loads(Path(out, "rejected.json").read_text())}


def folder(root: Path, splits: bool = False, count: int = 8) -> dict:
    """Write image folders of the classes cat and dog."""
    for n in range(count):
        top = root / ("train", "train", "valid", "test")[n // 2 % 4] if splits else root
        picture(top / ("cat", "dog")[n % 2] / f"{n}.png", n)
    return {"format": "folder", "path": str(root)}


def voc(root: Path, count: int = 8) -> dict:
    """Write a Pascal VOC folder with splits."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for n in range(count):
        picture(root / "JPEGImages" / f"{n}.png", n)
        annotate(root, f"{n}", ("cat", "dog")[n % 2])
        lists[("train", "train", "val", "test")[n // 2 % 4]].append(f"{n}")
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, names in lists.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return {"format": "voc", "path": str(root)}


def annotate(root: Path, name: str, label: str, box: tuple = BOX, image: str = "") -> Path:
    """Write a VOC annotation; VOC counts from 1 and includes the last pixel."""
    x, y, width, height = box
    sides = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in sides.items())
    file = root / "Annotations" / f"{name}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"<annotation><filename>{image or name + '.png'}</filename>"
        f"<object><name>{label}</name><bndbox>{inner}</bndbox></object></annotation>"
    )
    return file


def ultralytics(root: Path, count: int = 8) -> dict:
    """Write an Ultralytics dataset of boxes."""
    width, height = SIZE
    x, y, w, h = BOX
    centre = f"{(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}"
    for n in range(count):
        split = ("train", "train", "val", "test")[n // 2 % 4]
        picture(root / "images" / split / f"{n}.png", n)
        label = root / "labels" / split / f"{n}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f"{n % 2} {centre}\n")
    paths = {split: f"images/{split}" for split in ("train", "val", "test")}
    (root / "data.yaml").write_text(yaml.safe_dump({"path": ".", **paths, "names": {0: "cat", 1: "dog"}}))
    return {"format": "ultralytics", "path": str(root), "yaml": "data.yaml"}


def coco(root: Path, count: int = 8) -> dict:
    """Write a COCO dataset; the ids of its categories have gaps."""
    found: dict[str, dict] = {}
    for n in range(count):
        split = ("train", "train", "val", "test")[n // 2 % 4]
        picture(root / split / f"{n}.png", n)
        one = found.setdefault(split, {"images": [], "annotations": []})
        one["images"].append({"id": n, "file_name": f"{n}.png", "width": SIZE[0], "height": SIZE[1]})
        one["annotations"].append({"id": n, "image_id": n, "category_id": (3, 7)[n % 2], "bbox": list(BOX)})
        one["annotations"].append({"id": 100 + n, "image_id": n, "category_id": 3, "bbox": [0, 0, 1, 1], "iscrowd": 1})
    for split, one in found.items():
        one["categories"] = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        (root / f"{split}.json").write_text(json.dumps(one))
    return {
        "format": "coco",
        "path": str(root),
        "annotations": {split: f"{split}.json" for split in found},
        "images": {split: split for split in found},
    }


def table(root: Path, count: int = 8, suffix: str = "csv") -> dict:
    """Write a table of images with labels and splits."""
    rows = []
    for n in range(count):
        picture(root / "photos" / f"{n}.png", n)
        split = ("train", "train", "val", "test")[n // 2 % 4]
        rows.append({"file": f"photos/{n}.png", "class": ("cat", "dog")[n % 2], "part": split})
    write_table(root, rows, suffix)
    return {
        "format": "table", "path": str(root), "table": f"table.{suffix}", "image": "file", "label": "class",
        "split": "part",
    }  # fmt: skip


def write_table(root: Path, rows: list[dict], suffix: str = "csv") -> None:
    """Write `table.csv` or `table.parquet`."""
    if suffix == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), root / "table.parquet")
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (root / "table.csv").write_text(text.getvalue())


def arrays(root: Path, count: int = 8) -> dict:
    """Write arrays: a .npz of training images, and .npy files of the others."""
    root.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[int]] = {}
    for n in range(count):
        parts.setdefault(("train", "train", "val", "test")[n // 2 % 4], []).append(n)
    for split, numbers in parts.items():
        images = np.stack([pixels(n) for n in numbers])
        labels = np.array([("cat", "dog")[n % 2] for n in numbers])
        if split == "train":
            np.savez(root / "train.npz", x=images, y=labels)
        else:
            np.save(root / f"{split}_x.npy", images)
            np.save(root / f"{split}_y.npy", labels)
    pairs = {s: {"images": f"{s}_x.npy", "labels": f"{s}_y.npy"} for s in parts if s != "train"}
    pairs["train"] = {"images": "train.npz:x", "labels": "train.npz:y"}
    return {"format": "arrays", "path": str(root), "arrays": pairs}


def scenes(root):
    sizes = {"images": 10, "size": 32, "digits": 3, "smallest": 12, "largest": 24}
    return {"format": "digit_scenes", "path": str(root), "seed": 0, **sizes}


# Format: how a source of it is written, its task, and whether it brings splits.
ALL = {
    "arrays": (arrays, "classification", True),
    "coco": (coco, "detection", True),
    "digit_scenes": (scenes, "detection", True),
    "digits": (lambda root: {"format": "digits", "path": str(root), "size": 8}, "classification", False),
    "folder": (folder, "classification", False),
    "table": (table, "classification", True),
    "ultralytics": (ultralytics, "detection", True),
    "voc": (voc, "detection", True),
}
