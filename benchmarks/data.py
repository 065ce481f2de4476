"""Measures what indexing costs, against plain decoding, in one run: python -m benchmarks.data [--big] [--rows N].

Prints the rates, the seconds of a first run, a second one, and one after 1 % more images, the peak of memory (of the
main process), and the seconds of the contract on N rows.
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

SIZE = (640, 480)
PREPARE = "prepare.main(pathlib.Path('data'))"
GRAIN = np.random.default_rng(0).normal(0, 4, (*SIZE[::-1], 1)).astype(np.int16)
PARAMS = Path(__file__).parent.parent / "params.yaml"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--big", action="store_true", help="100,000 images, too (about 6 GB of disk)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the index for the contract")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    start = Path.cwd()
    print(f"{cores} cores; JPEGs of {SIZE[0]}x{SIZE[1]}; decode, prepare: images a second of one core; others: seconds")
    print(
        f"{'images':>8} {'decode':>8} {'prepare':>8} {'share':>6} {'first':>8} {'again':>8} {'+1 %':>8} {'peak MB':>8}"
    )
    for count in (1_000, 10_000, *([100_000] if arguments.big else [])):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            write_params({"format": "folder", "path": "source"}, 3)
            make(Path("source"), 0, count)
            files = sorted(Path("source").rglob("*.jpg"))[:2_000]
            plain = own_process(f"benchmarks.data.decode_all({len(files)})")
            plain = own_process(f"benchmarks.data.decode_all({len(files)})")  # the files are in memory, for both
            runs = [own_process(PREPARE)]
            after = own_process(f"benchmarks.data.decode_all({len(files)})")
            decode = 2 * len(files) / (plain["cpu"] + after["cpu"])
            runs.append(own_process(PREPARE))
            make(Path("source"), count, count // 100)
            runs.append(own_process(PREPARE))
            rates = [count / run["cpu"] for run in runs]
            print(
                f"{count:>8,} {decode:>8,.0f} {rates[0]:>8,.0f} {rates[0] / decode:>6.0%} {runs[0]['wall']:>8.1f} "
                f"{runs[1]['wall']:>8.1f} {runs[2]['wall']:>8.1f} {runs[0]['peak']:>8,.0f}",
                flush=True,
            )
            os.chdir(start)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_params({"format": "digits", "path": ".", "size": 8}, 3)
        rows(Path("data"), arguments.rows)
        check_data.judge([])  # imports
        seconds = timed(lambda: check_data.main(Path("data"), Path("contract")))
        print(f"contract on {arguments.rows:,} rows: {seconds:.1f} s")
        os.chdir(start)


def make(root: Path, first: int, count: int) -> None:
    """Write `count` JPEGs in ten classes: smooth colours with the grain of a camera. No two have equal pixels."""
    for number in range(10):
        (root / f"class {number}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(make_one, [root] * count, range(first, first + count), chunksize=64):
            pass


def make_one(root: Path, number: int) -> None:
    """Write one JPEG."""
    from PIL import Image

    random = np.random.default_rng(number)
    small = random.integers(0, 255, (SIZE[1] // 16, SIZE[0] // 16, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize(SIZE), np.int16) + np.roll(GRAIN, int(random.integers(SIZE[1])), 0)
    file = root / f"class {number % 10}" / f"{number:07d}.jpg"
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, quality=85)


def decode_all(count: int) -> None:
    """Decode the first files by Pillow alone, on all cores."""
    files = sorted(Path("source").rglob("*.jpg"))[:count]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(decode_one, files, chunksize=prepare.CHUNK):
            pass


def decode_one(file: Path) -> None:
    """Read and decode one file into an array."""
    from PIL import Image

    with Image.open(file) as image:
        np.asarray(image)


def own_process(work: str) -> dict[str, float]:
    """Run Python code in a process of its own; return seconds (`wall`, and `cpu` with its children), and MB (`peak`).

    Imports are not counted. Seconds of processors, unlike those of the clock, hardly depend on who else is at work.
    """
    code = f"""
import resource as r, time, pathlib
import PIL.Image, pyarrow.parquet, tqdm
import benchmarks.data
from pipelines import prepare
def cpu():
    return sum(u.ru_utime + u.ru_stime for u in map(r.getrusage, (r.RUSAGE_SELF, r.RUSAGE_CHILDREN)))
wall, used = time.perf_counter(), cpu()
{work}
print(time.perf_counter() - wall, cpu() - used, r.getrusage(r.RUSAGE_SELF).ru_maxrss / 1024)
"""
    environment = {**os.environ, "PYTHONPATH": str(PARAMS.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return dict(zip(("wall", "cpu", "peak"), map(float, done.stdout.split()[-3:]), strict=True))


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
