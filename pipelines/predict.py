"""Runs a bundle: images in, labelled predictions out. Needs numpy and the bundle's runtime alone.

usage: python predict.py [--verify] IMAGE... ; .npy arrays H x W x C, or image files where Pillow is installed.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.images import ImageError, decode_image
from pipelines.preprocess import Preprocess

Predict = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]
Decode = Callable[..., list[dict[str, Any]]]  # outputs, postprocess.json, Preprocess, shapes of the images
Hits = Callable[[dict[str, Any], NDArray[Any]], int]  # of what a prediction should say, how much it says


class Model:
    """The artifact of a bundle with its pre- and postprocessing.

    `load` is that of the bundle's runtime, `decode` and `hits` those of its task; `hits` says how much of the truth of
    a golden image a prediction has.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path, int], Predict],
        decode: Decode,
        hits: Hits,
        artifact: str,
        threads: int,
    ) -> None:
        read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))  # noqa: E731
        self.preprocess = Preprocess.from_dict(read("preprocess.json"))
        self.postprocess: dict[str, Any] = read("postprocess.json")
        self.run = load(folder / "model" / artifact, threads)
        self.decode, self.hits = decode, hits

    def __call__(self, images: Sequence[NDArray[Any]]) -> list[dict[str, Any]]:
        """Return the prediction for each image, H x W x C. Raises ValueError on a wrong number of channels."""
        batch = np.stack([self.preprocess(image) for image in images])
        return self.decode(self.run(batch), self.postprocess, self.preprocess, [image.shape for image in images])


def read_image(path: Path) -> NDArray[Any]:
    """Return one image, H x W x C, of a .npy or an image file. Raises ImageError with a reason."""
    if path.suffix != ".npy":
        return decode_image(path.read_bytes())
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except ValueError as error:
        raise ImageError(f"not a plain array: {error}") from None


def verify(folder: Path) -> None:
    """Compare the bundle's files with SHA256SUMS. Raises ValueError that names the first that differs.

    Sums find damage, not forgery: `quantmill pull` and `quantmill trace` check the signature.
    """
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        wanted, _, name = line.partition("  ")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
            raise ValueError(f"{name}: differs from SHA256SUMS; pull the bundle again")


def main(folder: Path, model: Callable[[int], Model]) -> None:
    """Print one JSON line for each image on the command line; `model` gives the model of a number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--verify", action="store_true", help="compare the files with SHA256SUMS first")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime")
    arguments = parser.parse_args()
    try:
        if arguments.verify:
            verify(folder)
        loaded = model(arguments.threads)
        for path in arguments.images:
            print(json.dumps({"image": str(path), **loaded([read_image(path)])[0]}))
    except (ImportError, OSError, ValueError) as error:
        print(f"predict: {error}", file=sys.stderr)
        raise SystemExit(1) from None
