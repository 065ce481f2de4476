"""INT8 beside FP32 and beside the peers' defaults: speed, size and agreement of known networks on each CPU runtime.

The networks have random weights, and normalization statistics of the images: their speed, size and agreement with FP32
mean something, their accuracy does not. The images are crops of the two photographs that scikit-learn ships.

Each cell, a network on a runtime, is a process of its own, and is kept in a file of cells: what is there is not
measured again, and a cell that fails stops no other. `--cell NETWORK RUNTIME` measures one.
"""

import argparse
import contextlib
import math
import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import yaml

from benchmarks import peers
from pipelines import calibrate, fp32, models, prepare, quantize, runtimes, search
from pipelines.calibration import Calibration
from pipelines.data import Dataset, Input
from pipelines.files import read_json, size_of, write_json
from pipelines.measure import interleaved
from pipelines.params import section, value
from tests import line

# As timm names them, and YOLO26n by Ultralytics, with the edge of their images.
MODELS = {
    "resnet18": 224,
    "mobilenetv2_100": 224,
    "mobilenetv3_large_100": 224,
    "efficientnet_lite0": 224,
    "yolo26n-320": 320,
    "yolo26n-640": 640,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "openvino": {"preset": "performance", "bias_correction": "fast", "ranges": "mean_minmax", "smooth_quant": False},
    "onnxruntime": {
        "ranges": "minmax", "per_channel": True, "activations": "u8", "operators": "all", "reduce_range": False
    },
    "litert": {"activations": "int8", "ranges": "minmax"},
}  # fmt: skip
CROPS, IMAGES = 160, 32
SEARCH_RUNS = 100  # for each scheme that the search tries
LEAST = 0.9  # agreement with FP32 that the search keeps where no peer says how much can be kept
WORK = Path(".quantmill/benchmark-targets")
DOCS = Path("docs/targets.md")
MARKS = "<!-- measured -->", "<!-- end -->"


def main() -> None:
    """Measure the cells that are not in the file of cells yet, and print the table; --write puts it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--runtimes", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--cell", nargs=2, metavar=("NETWORK", "RUNTIME"), help="measure this one, here and now")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--work", type=Path, default=WORK, help="what is built, and cells.json")
    parser.add_argument("--olive", type=Path, help="python of an environment that has olive-ai")
    parser.add_argument("--timeout", type=int, default=7200, help="seconds for a cell")
    parser.add_argument("--retry", action="store_true", help="measure cells that failed again")
    parser.add_argument("--write", action="store_true", help="put the table into docs/targets.md")
    options = parser.parse_args()
    work = options.work.resolve()
    cells: dict[str, Any] = read_json(work / "cells.json") if (work / "cells.json").is_file() else {}
    if options.cell:
        name, runtime = options.cell
        cells[f"{name} {runtime}"] = cell(work, name, runtime, options.runs, options.olive and options.olive.absolute())
        write_json(work / "cells.json", cells)
    else:
        wanted = [(m, r) for m in options.models for r in options.runtimes]
        for name, runtime in wanted:
            done = cells.get(f"{name} {runtime}")
            if done is None or (options.retry and "failed" in done):
                apart(work, name, runtime, options)
                cells = read_json(work / "cells.json")
    text = table([cells[k] for m in MODELS for r in OPTIONS if (k := f"{m} {r}") in cells])
    print(text)
    if options.write:
        before, rest = DOCS.read_text(encoding="utf-8").split(MARKS[0])
        DOCS.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def apart(work: Path, name: str, runtime: str, options: argparse.Namespace) -> None:
    """Measure a cell in a process of its own; where it fails, write why in its place."""
    words = ["--cell", name, runtime, "--work", str(work), "--runs", str(options.runs)]
    words += ["--olive", str(options.olive.absolute())] if options.olive else []
    print(f"{name} on {runtime}", flush=True)
    try:
        command = [sys.executable, "-m", "benchmarks.targets", *words]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=options.timeout, check=False)
        reason = peers.last_line(done.stderr) if done.returncode else None
    except subprocess.TimeoutExpired:
        reason = f"not done in {options.timeout} s"
    if reason:
        print(f"{name} on {runtime}: failed: {reason}", flush=True)
        file = work / "cells.json"
        cells = read_json(file) if file.is_file() else {}
        write_json(file, {**cells, f"{name} {runtime}": {"model": name, "runtime": runtime, "failed": reason}})


def project(root: Path, name: str, runs: int) -> None:
    """Make a copy of the project whose images fit a network, and whose targets search; a network has its own."""
    edge = MODELS[name]
    root.mkdir(parents=True)
    detects = name.startswith("yolo")
    line.copy(root, example="detection" if detects else "")
    declared = yaml.safe_load((root / "params.yaml").read_text())
    if detects:
        declared["data"]["source"] |= {"images": 200, "size": 320}
        declared["input"] = {"height": edge, "width": edge, "resize": "letterbox", "mean": [0.0] * 3, "std": [1.0] * 3}
    else:
        _crops(root / "photos", edge)
        declared["data"] |= {"source": {"format": "folder", "path": "photos"}, "channels": 3}
        declared["input"] = {"height": edge, "width": edge, "resize": "stretch"}
    aim = {"agreement": {"min": LEAST}}
    targets = {
        name: {
            "runtime": name, "precision": "int8", "device": "cpu", "options": options, "search": "fast",
            "aim": aim, "gates": {},
        }
        for name, options in OPTIONS.items()
    }  # fmt: skip
    declared["data"]["splits"]["val"] = 0.3  # of 320 images: one of them is one point of agreement
    declared["calibrate"]["images"] = IMAGES
    declared["measure"] |= {"threads": os.cpu_count(), "warmup": 20, "runs": min(runs, SEARCH_RUNS), "batch": 8}
    (root / "params.yaml").write_text(yaml.safe_dump({**declared, "targets": targets}))


def _crops(folder: Path, edge: int) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(CROPS):
            side = int(generator.integers(120, 400))
            top, left = (int(generator.integers(0, length - side)) for length in photo.shape[:2])
            crop = Image.fromarray(photo[top : top + side, left : left + side]).resize((edge, edge))
            crop.save(folder / name / f"{number:03}.png")


def network(name: str, classes: int) -> Any:
    """Return a network of random weights, the same every time."""
    import torch

    torch.manual_seed(0)
    if name.startswith("yolo"):
        family = {"family": "ultralytics", "model": "yolo26n.yaml", "weights": None, "trainer": {}}
        return models.build(family, 3, classes)
    import timm

    model = timm.create_model(name, pretrained=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)  # zero at the start of training: whole branches would compute nothing
    return model


def export(name: str, dataset: Dataset, out: Path) -> Any:
    """Write a network as `pruned.onnx` with its facts, after its normalization layers have seen the images."""
    import torch

    preprocess = dataset.preprocess(section("input", Input))
    write_json(out / "preprocess.json", preprocess.to_dict())
    model = network(name, len(dataset.classes))
    rows = dataset.rows("train")[:64]
    with torch.no_grad():
        for _ in range(3):
            for start in range(0, len(rows), 16):
                images = [preprocess(dataset.image(row)) for row in rows[start : start + 16]]
                model.train()(torch.from_numpy(np.stack(images)))
    facts = {"task": value("task"), "classes": dataset.classes, "channels": 3}
    post = getattr(model, "postprocess", None)
    write_json(out / "model.json", {**facts, "postprocess": post} if post else facts)
    fp32.export(model.eval(), (3, MODELS[name], MODELS[name]), out / "pruned.onnx")
    return model


def cell(work: Path, name: str, runtime: str, runs: int, olive: Path | None) -> dict[str, Any]:
    """Return one cell: what the search chose and what each peer gives, timed in turn with FP32."""
    onnxruntime.set_default_logger_severity(3)  # it warns of initializers that the exporter left over
    root = work / name
    if not (root / "build/calibration").is_dir():  # the last thing made: what is there before it is not whole
        shutil.rmtree(root, ignore_errors=True)
        project(root, name, runs)
        with contextlib.chdir(root):
            prepare.main(Path("build/data"))
            export(name, Dataset(Path("build/data")), Path("build/onnx"))
            calibrate.main(Path("build/data"), Path("build/onnx"), Path("build/calibration"))
    with contextlib.chdir(root):
        return measured(name, runtime, runs, olive)


def measured(model: str, name: str, runs: int, olive: Path | None) -> dict[str, Any]:
    """Return one cell of the project in the current folder."""
    data, onnx, runtime = Path("build/data"), Path("build/onnx"), runtimes.load(name)
    out, rivals = Path("build/targets") / name, Path("build/rivals") / name
    frozen = Calibration(data, Path("build/calibration"))
    others: dict[str, peers.Peer] = peers.of(name, olive)
    if model.startswith("yolo") and name == "openvino":
        others["Ultralytics"] = partial(peers.ultralytics, export(model, Dataset(data), rivals / "again"))
    artifacts, failed = {}, {}
    for peer, make in others.items():
        try:
            shutil.rmtree(rivals / peer, ignore_errors=True)
            (rivals / peer).mkdir(parents=True)
            make(onnx / "pruned.onnx", frozen, rivals / peer)
            artifacts[peer] = rivals / peer
        except Exception as error:  # whatever a peer does, the others are measured
            failed[peer] = {"failed": peers.last_line(f"{type(error).__name__}: {error}")}
    with search.bench(name, runtime, "cpu", onnx / "pruned.onnx", frozen, data, onnx) as bench:
        rows = {peer: answers(bench, place) for peer, place in artifacts.items()}
    _aim(name, max((row["agreement"] or 0.0 for row in rows.values()), default=LEAST))
    quantize.main(name, data, onnx, Path("build/calibration"), out)
    made = read_json(out / "quantize.json")
    with search.bench(name, runtime, "cpu", onnx / "pruned.onnx", frozen, data, onnx) as bench:
        artifacts |= {"fp32": bench.fp32, "ours": out}
        rows |= {key: answers(bench, artifacts[key]) for key in ("fp32", "ours")}
        settings = {**bench.split.measure.model_dump(), "runs": runs}
        files = {key: place / runtime.FILES[0] for key, place in artifacts.items()}
        times = interleaved(name, files, bench.split.shape, settings, "cpu")["times_ms"]
    p50 = {key: float(np.median(found)) for key, found in times.items()}
    rows = {key: {"speedup": p50["fp32"] / p50[key], **row} for key, row in rows.items()}
    return {
        "model": model,
        "runtime": name,
        "precision": made["precision"],
        "kept": len(made["kept"]),
        "chosen": made["chosen"],
        "fp32_ms": p50["fp32"],
        "measured": f"{date.today()}, {os.cpu_count()} cores, {processor()}, medians of {runs} runs",
        "fp32": rows.pop("fp32"),
        "ours": rows.pop("ours"),
        "peers": {**rows, **failed},
    }


def _aim(name: str, agreement: float) -> None:
    """Make a search reach what the best of the peers reaches, to the point, and be the fastest that does."""
    file = Path("params.yaml")
    declared = yaml.safe_load(file.read_text())
    declared["targets"][name]["aim"] = {"agreement": {"min": math.floor(agreement * 100) / 100}}
    file.write_text(yaml.safe_dump(declared))


def answers(bench: search.Bench, artifact: Path) -> dict[str, Any]:
    """Return size and agreement of an artifact; none where it gives other outputs than FP32 does."""
    size = sum(size_of(artifact / f) for f in bench.runtime.FILES)
    try:
        outputs = bench.outputs(artifact)
    except (RuntimeError, ValueError):  # takes one image only
        return {"bytes": size, "agreement": None, "error": None}
    if [o.shape for o in outputs] != [o.shape for o in bench.reference]:
        return {"bytes": size, "agreement": None, "error": None}
    lost = bench.answers(outputs)
    return {"bytes": size, "agreement": lost["agreement"], "error": lost["error"]}


def table(cells: list[dict[str, Any]]) -> str:
    """Return the cells as Markdown, with the machines and the days."""
    said = sorted({c["measured"] for c in cells if "measured" in c})
    lines = [
        "".join(f"Measured {text} of one image each, in turn in one process.\n" for text in said),
        "| network | runtime | FP32 | ours | peers' defaults | agreement: ours; peers | size: FP32, ours; peers |",
        "| --- | --- | --: | --- | --- | --- | --- |",
    ]
    for c in cells:
        if "failed" in c:
            lines.append(f"| {c['model']} | {c['runtime']} | not measured: {c['failed']} | | | | |")
            continue
        ours, ran = c["ours"], {k: v for k, v in c["peers"].items() if "failed" not in v}
        kept = f", {c['kept']} operators in float" if c["kept"] else ""
        speeds = [f"{v['speedup']:.2f} x ({k})" for k, v in ran.items()]
        speeds += [f"failed ({k}: {v['failed']})" for k, v in c["peers"].items() if "failed" in v]
        agree = ", ".join(_share(v["agreement"]) for v in ran.values())
        sizes = ", ".join(f"{v['bytes'] / 1e6:.1f}" for v in ran.values())
        lines.append(
            f"| {c['model']} | {c['runtime']} | {c['fp32_ms']:.1f} ms | **{ours['speedup']:.2f} x** "
            f"({c['precision']}{kept}) | {', '.join(speeds)} | {_share(ours['agreement'])}; {agree} "
            f"| {c['fp32']['bytes'] / 1e6:.1f}, {ours['bytes'] / 1e6:.1f}; {sizes} MB |"
        )
    return "\n".join(lines)


def _share(agreement: float | None) -> str:
    return "other outputs" if agreement is None else f"{agreement:.1%}"


def processor() -> str:
    """Return the name of the processor."""
    try:
        found = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    except OSError:
        found = []
    return found[0].partition(": ")[2] if found else platform.machine()


if __name__ == "__main__":
    main()
