"""Measures what indexing costs, against plain decoding, in one run: python -m benchmarks.data [--big] [--rows N].

Prints what one core prepares beside what it decodes; the seconds of a first run, a second one, and one after 1 % more
images; the peak of memory of the main process; the share of a training's time spent waiting for images; and the
seconds of the contract on N rows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import yaml

from pipelines import check_data, index, params, prepare
from pipelines.files import write_json
from pipelines.formats import Item
from pipelines.inspection import Outcome
from pipelines.kept import KEPT
from pipelines.known import KNOWN, Known

SIZE = (640, 480)
GRAIN = np.random.default_rng(0).normal(0, 4, (*SIZE[::-1], 1)).astype(np.int16)
PARAMS = Path(__file__).parent.parent / "params.yaml"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--big", action="store_true", help="100,000 images, too (about 6 GB of disk)")
    parser.add_argument("--edge", type=int, nargs=2, default=SIZE, help="width and height of the images")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the index for the contract")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    start = Path.cwd()
    size = tuple(arguments.edge)
    load = os.getloadavg()[0]
    print(f"{cores} cores, {load:.1f} processes at work before; JPEGs of {size[0]}x{size[1]}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make(Path("source"), 0, 1_000, size)
        plain, kept, prepared = rates(sorted(Path("source").rglob("*.jpg")))
        print(f"of one core, a second: {plain:,.0f} images decoded by Pillow, {kept:,.0f} where memory is kept;")
        print(f"{prepared:,.0f} prepared: {prepared / plain:.0%} and {prepared / kept:.0%}", flush=True)
        os.chdir(start)
    print(f"{'images':>8} {'first s':>8} {'a second':>8} {'again s':>8} {'+1 % s':>8} {'peak MB':>8}")
    for count in (1_000, 10_000, *([100_000] if arguments.big else [])):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            write_params({"format": "folder", "path": "source"}, 3)
            make(Path("source"), 0, count, size)
            time.sleep(3)  # until the files count as old
            runs = [own_process(), own_process()]
            make(Path("source"), count, count // 100, size)
            runs.append(own_process())
            walls = [run["wall"] for run in runs]
            print(
                f"{count:>8,} {walls[0]:>8.1f} {count / walls[0]:>8,.0f} {walls[1]:>8.1f} {walls[2]:>8.1f} "
                f"{runs[0]['peak']:>8,.0f}",
                flush=True,
            )
            if count == 1_000:
                for where, kept in (("memory", True), ("the shards", False)):
                    print(f"images from {where}: {training(kept)}", flush=True)
            os.chdir(start)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_params({"format": "digits", "path": ".", "size": 8}, 3)
        rows(Path("data"), arguments.rows)
        check_data.judge([])  # imports
        seconds = timed(lambda: check_data.main(Path("data"), Path("contract")))
        print(f"contract on {arguments.rows:,} rows: {seconds:.1f} s")
        os.chdir(start)


def make(root: Path, first: int, count: int, size: tuple[int, ...]) -> None:
    """Write `count` JPEGs in ten classes: smooth colours with the grain of a camera. No two have equal pixels."""
    for number in range(10):
        (root / f"class {number}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(make_one, [root] * count, range(first, first + count), [size] * count, chunksize=64):
            pass


def make_one(root: Path, number: int, size: tuple[int, ...]) -> None:
    """Write one JPEG."""
    from PIL import Image

    random = np.random.default_rng(number)
    small = random.integers(0, 255, (size[1] // 16, size[0] // 16, 3), np.uint8)
    grain = np.roll(GRAIN, int(random.integers(SIZE[1])), 0)[: size[1], : size[0]]
    image = np.asarray(Image.fromarray(small).resize(size), np.int16) + grain
    file = root / f"class {number % 10}" / f"{number:07d}.jpg"
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, quality=85)


def rates(files: list[Path]) -> tuple[float, float, float]:
    """Return images a second of one core's time: decoded plainly, decoded in a worker of ours, and prepared there.

    In turn over the same files, CHUNK at a time, so that who else is at work slows all down alike. Preparing is all
    of it: reading, hashing, decoding, measuring, and writing the shards, the rows and the cache. A worker of ours
    keeps the memory that it frees (`pipelines.workers`), which a plain process gives back.
    """
    known, table = Known(KNOWN), index.Rows(Path("rows.arrow"), "classification")
    known.begin_places()
    spent = np.zeros(3)
    with (
        ProcessPoolExecutor(1) as plain,
        ProcessPoolExecutor(1, initializer=prepare._begin, initargs=(3, 8, KNOWN, KEPT)) as ours,
        index.Shards(Path()) as shards,
    ):
        for pool in (plain, ours):
            pool.submit(decode, files[:1]).result()  # imports
        for first in range(0, len(files), prepare.CHUNK):
            some = files[first : first + prepare.CHUNK]
            spent[0] += plain.submit(decode, some).result()
            spent[1] += ours.submit(decode, some).result()
            seconds, outcomes = ours.submit(look, some).result()
            begin = time.process_time()
            prepare.store(outcomes, shards, table, known, [])
            spent[2] += seconds + time.process_time() - begin
    plain_rate, kept_rate, prepared_rate = len(files) / spent
    return plain_rate, kept_rate, prepared_rate


def decode(files: list[Path]) -> float:
    """Decode files into arrays; return the seconds of this process."""
    from PIL import Image

    begin = time.process_time()
    for file in files:
        with Image.open(file) as image:
            np.asarray(image)
    return time.process_time() - begin


def look(files: list[Path]) -> tuple[float, list[Outcome]]:
    """Look at files as a worker of `prepare` does; return the seconds of this process, too."""
    begin = time.process_time()
    outcomes = prepare._inspect_all([Item(file.as_posix(), file=file, label="x") for file in files])
    return time.process_time() - begin, outcomes


def own_process() -> dict[str, float]:
    """Run `prepare` in a process of its own; return seconds without imports (`wall`), and MB (`peak`)."""
    code = """
import resource, time, pathlib
import PIL.Image, pyarrow.parquet, tqdm
from pipelines import prepare
begin = time.perf_counter()
prepare.main(pathlib.Path("data"))
print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    environment = {**os.environ, "PYTHONPATH": str(PARAMS.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return dict(zip(("wall", "peak"), map(float, done.stdout.split()[-2:]), strict=True))


def training(kept: bool) -> str:
    """Train the model of params.yaml on the data for two epochs; return what it says of waiting for images."""
    code = f"""
import pathlib
from pipelines import train, training
if not {kept}:
    training.CACHE_BYTES = 0
train.main(pathlib.Path("data"), pathlib.Path("teacher"))
"""
    found = params.read(Path("params.yaml"))
    found["train"]["epochs"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(found))
    environment = {**os.environ, "PYTHONPATH": str(PARAMS.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def rows(folder: Path, count: int) -> None:
    """Write an index of `count` rows."""
    import pyarrow as pa
    from pyarrow import parquet

    random = np.random.default_rng(0)
    folder.mkdir()
    numbers = np.arange(count)
    table = pa.table(
        {
            "path": [f"{n:09d}.jpg" for n in numbers],
            "split": np.array(["train", "val", "test"])[numbers % 3],
            "shard": np.full(count, "images-00000.tar"),
            "offset": numbers,
            "bytes": numbers,
            **{name: np.full(count, 640, np.int32) for name in ("width", "height")},
            "channels": np.full(count, 3, np.int32),
            "bits": np.full(count, 8, np.int32),
            **{name: [f"{n:064x}" for n in numbers] for name in ("content_hash", "pixel_hash")},
            **{name: [[0.5, 0.5, 0.5]] * count for name in ("channel_mean", "channel_std")},
            **{name: random.uniform(0.2, 0.5, count) for name in ("brightness", "sharpness")},
            "label": random.integers(0, 10, count, np.int32),
        },
        schema=index.schema("classification", final=True),
    )
    parquet.write_table(table, folder / "index.parquet")
    counts = dict.fromkeys(("train", "val", "test"), count // 3)
    info = {"task": "classification", "classes": [str(n) for n in range(10)], "images": counts, "rejected": 0}
    write_json(folder / "dataset.json", {**info, "channels": 3, "bits": 8, "mean": [0.5] * 3, "std": [0.2] * 3})
    write_json(folder / "rejected.json", [])


def write_params(source: dict[str, object], channels: int) -> None:
    """Write a params.yaml with another source into the current folder."""
    found = params.read(PARAMS)
    found["data"] |= {"source": source, "channels": channels}
    found["contract"]["channels"]["value"] = channels
    Path("params.yaml").write_text(yaml.safe_dump(found))


def timed(work: object) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
