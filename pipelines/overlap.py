"""Finds images that two sets share: of equal pixels, or so much alike that one is a copy of the other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.data import Dataset, Input

EDGE = 32  # of the thumbnails, in pixels
BITS = 8  # the perceptual hash is of BITS x BITS frequencies
NEAR = 10  # bits of 64 by which the hashes of two copies may differ
SAME = 0.01  # of full scale: the mean difference between the thumbnails of two copies


def copies(dataset: Dataset, ones: Sequence[int], others: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs of rows, one of each set, that show the same image: copied, scaled or compressed anew.

    Perceptual hashes find candidates (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions,
    2010: the signs of the low frequencies of a DCT against their median); thumbnails of them are then compared, since
    small or plain images have equal hashes without being the same.
    """
    pixels = dataset.column("pixel_hash")
    small = {row: thumbnail(dataset, row) for row in {*ones, *others}}
    hashes = {row: perceptual_hash(image) for row, image in small.items()}
    right = np.array([hashes[row] for row in others], np.uint64)
    found = []
    for one in ones:
        near = np.flatnonzero(np.bitwise_count(right ^ hashes[one]) <= NEAR)
        candidates = {*near.tolist(), *np.flatnonzero(pixels[list(others)] == pixels[one]).tolist()}
        for other in sorted(others[n] for n in candidates):
            alike = small[one].shape == small[other].shape and np.abs(small[one] - small[other]).mean() <= SAME
            if alike or pixels[one] == pixels[other]:
                found.append((int(one), int(other)))
    return found


def thumbnail(dataset: Dataset, row: int) -> NDArray[np.float32]:
    """Return an image as EDGE x EDGE x C in 0..1."""
    prepare = dataset.preprocess(Input(height=EDGE, width=EDGE, resize="stretch"))
    return (prepare.pixels(dataset.image(row)) / prepare.full_scale).astype(np.float32)


def perceptual_hash(image: NDArray[np.float32]) -> np.uint64:
    """Return 64 bits of a thumbnail."""
    from scipy.fft import dctn

    low = dctn(image.mean(2))[:BITS, :BITS].ravel()
    return np.uint64(np.packbits(low > np.median(low[1:])).view(np.uint64)[0])
