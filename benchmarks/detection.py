"""YOLO26n at 320 pixels on a set of boxes in Pascal VOC form: FP32 and INT8 on two runtimes, and what a teacher gives.

Trained from scratch, on the CPU, for few epochs: drops and ratios mean something, the metric itself is far from what
the network can do.
"""

import argparse
import contextlib
import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.line import call
from benchmarks.targets import processor
from pipelines import (
    baseline,
    calibrate,
    convert,
    evaluation,
    fp32,
    judge,
    models,
    preprocess,
    quantize,
    training,
    validate,
)
from pipelines.files import read_json
from pipelines.models import ultralytics as family
from pipelines.runtimes import onnxruntime
from pipelines.tasks.detection import average_precision, decode
from tests import line

SIZE, BATCH, LR = 320, 4, 0.002
DATA, DOCS = Path("build/data"), Path("docs/how-to/detection.md")
MARKS = "<!-- measured -->", "<!-- end -->"
EPOCHS = {"train": 8, "distill": 6, "prune": 3}
MODEL = {"family": "ultralytics", "model": "yolo26n.yaml", "weights": None, "trainer": {"mosaic": 0.0, "nbs": BATCH}}
LOSS = {"temperature": 1.0, "labels": 1.0, "logits": 0.0, "features": 6.0}
TARGETS = {
    "openvino-int8": {
        "runtime": "openvino",
        "options": {"preset": "performance", "bias_correction": "fast", "ranges": "mean_minmax", "smooth_quant": False},
    },
    "onnxruntime-int8": {
        "runtime": "onnxruntime",
        "options": {
            "ranges": "minmax", "per_channel": True, "activations": "u8", "operators": "all", "reduce_range": False
        },
    },
    "litert-int8": {"runtime": "litert", "options": {"activations": "int8", "ranges": "minmax"}},
}  # fmt: skip


def schedule(*stages: str) -> dict[str, Any]:
    """Return a schedule with the epochs of all of `stages`."""
    epochs = sum(EPOCHS[stage] for stage in stages)
    return {"epochs": epochs, "batch": BATCH, "lr": LR, "weight_decay": 0.0005, "warmup": 0.05}


def project(root: Path, data: Path) -> Path:
    """Make a copy of the project whose data are `data` and whose models are YOLO26n; one that is there goes on."""
    if root.is_dir():
        return root
    root.mkdir(parents=True)
    line.copy(root, example="detection")
    file = root / "params.yaml"
    declared = yaml.safe_load(file.read_text())
    declared |= {
        "threads": os.cpu_count(),
        "input": {
            "height": SIZE, "width": SIZE, "resize": "letterbox", "antialias": False,
            "mean": [0.0] * 3, "std": [1.0] * 3,
        },
        "augment": {"rotate": 0, "shift": 0.1, "scale": 0.3, "flip": True},
        "teacher": MODEL,
        "train": schedule("train"),
        "student": MODEL,
        "distill": {"schedule": schedule("distill"), "loss": LOSS},
        "prune": {"ratio": 0.3, "round_to": 8, "schedule": schedule("prune"), "loss": LOSS},
        "targets": {
            name: {
                **target, "precision": "int8", "device": "cpu", "search": "fast", "aim": {"drop_fp32": {"max": 0.5}},
                "gates": {"drop_fp32": {"max": 1.0}},
            }
            for name, target in TARGETS.items()
        },
    }  # fmt: skip
    declared["data"] |= {"source": {"format": "voc", "path": str(data.resolve())}, "splits": {"val": 0.1, "test": 0.3}}
    declared["contract"] |= {"duplicates": "warn", "boxes": None}
    declared["calibrate"]["images"] = 48
    declared["measure"] |= {"threads": os.cpu_count(), "warmup": 20, "runs": 200, "batch": 8}
    file.write_text(yaml.safe_dump(declared))
    return root


def main() -> None:
    """Print the tables; write them into docs/how-to/detection.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder in Pascal VOC form, such as BCCD")
    parser.add_argument("folder", type=Path, help="where the project is made; one that is there goes on")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/how-to/detection.md")
    options = parser.parse_args()
    docs = DOCS.resolve()
    root = project(options.folder.resolve(), options.data)
    call(root, ["dvc", "repro", "convert"])
    with contextlib.chdir(root):
        quantized(Path("build/teacher"), Path("whole"))
        plain(Path("build/pruned/model.safetensors"), Path("plain"))
        text = "\n\n".join([of_targets(Path("whole")), of_students(), of_validators(Path("whole"))])
    print(text)
    if options.write:
        before, rest = docs.read_text(encoding="utf-8").split(MARKS[0])
        docs.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def plain(pruned: Path, out: Path) -> None:
    """Train a network of the widths of `pruned` from scratch, for as many epochs as that had, without a teacher."""
    import torch

    if (out / "model.onnx").exists():
        return
    setup = training.prepare(DATA)
    model, spec = models.load(pruned)
    torch.manual_seed(setup.seed)
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    model.head.bias_init()
    options = training.Schedule(**schedule("distill", "prune"))
    curves = training.fit("plain", model, setup, options, lambda net, x, y: setup.task.loss(net(x), y))
    models.save(out / "model.safetensors", model, spec)
    training.write_curves(out / "curves.csv", curves)
    fp32.export(model, (3, SIZE, SIZE), out / "model.onnx")


def quantized(model: Path, out: Path) -> None:
    """Put one model through the stages from convert to judge, every target of `params.yaml`; what is there stays."""
    onnx = out / "onnx"
    if not onnx.exists():
        convert.main(model, model, model, onnx)
    if not (out / "calibration").exists():
        calibrate.main(DATA, onnx, out / "calibration")
    for name in TARGETS:
        if not (out / "targets" / name).exists():
            quantize.main(name, DATA, onnx, out / "calibration", out / "targets" / name)
    if not (out / "baseline").exists():
        baseline.main(DATA, onnx, out / "baseline")
    for name in TARGETS:
        metrics = out / "metrics" / f"{name}.json"
        if not metrics.exists():
            folders = (onnx, out / "baseline", out / "calibration", out / "targets" / name)
            validate.main(name, DATA, *folders, metrics, out / "predictions" / f"{name}.npz")
        judge.main(name, metrics, out / "verdicts" / f"{name}.json")


def of_targets(out: Path) -> str:
    """Return the table of FP32 and INT8."""
    fp32 = read_json(out / "baseline/metrics.json")["pruned"]
    rows = [
        "| YOLO26n | mAP50-95 | lost, points | size | one image | FP32 there | faster | INT8 | in float | verdict |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --- |",
        f"| FP32, ONNX Runtime | {_interval(fp32)} | | {fp32['size_bytes'] / 1e6:.1f} MB | {fp32['p50_ms']:.1f} ms "
        "| | | | | |",
    ]
    kept = []
    for name in TARGETS:
        m, made = read_json(out / f"metrics/{name}.json"), read_json(out / f"targets/{name}/quantize.json")
        verdict = read_json(out / f"verdicts/{name}.json")["verdict"]
        lost = f"{m['drop_fp32']:.2f} ({m['drop_fp32_low']:.2f} to {m['drop_fp32_high']:.2f})"
        rows.append(
            f"| {name} | {_interval(m)} | {lost} | {m['size_bytes'] / 1e6:.1f} MB | {m['p50_ms']:.1f} ms "
            f"| {m['fp32_p50_ms']:.1f} ms | {m['speedup']:.2f} x | {m['int8_share']:.0%} | {len(made['kept'])} "
            f"| {verdict} |"
        )
        kept.append(f"- `{name}`: {made['chosen']}." + "".join(_kept(made)))
    when = f"Measured {date.today()} on {os.cpu_count()} cores, {processor()}; {fp32['images']} test images."
    return "\n".join([when, "", *rows, "", *kept])


def _kept(made: dict[str, Any]) -> list[str]:
    """Return what stays in float, and why: the loss with that group alone in INT8."""
    found = []
    for row in made.get("sensitivity", []):
        if set(row["operators"]) <= set(made["kept"]):
            names = ", ".join(f"`{name}`" for name in row["operators"])
            found.append(
                f"\n  - in float: {names}: {row['drop_fp32']:.2f} points and an error of {row['error']:.3f} alone"
            )
    return found


def of_students() -> str:
    """Return the table of the distilled and pruned student beside the plain one of the same widths."""
    test = evaluation.read(DATA, Path("build/onnx"))
    files = {
        f"teacher, {EPOCHS['train']} epochs": Path("build/onnx/teacher.onnx"),
        f"distilled, {EPOCHS['distill']} epochs": Path("build/onnx/student.onnx"),
        f"distilled, pruned, {EPOCHS['prune']} more": Path("build/onnx/pruned.onnx"),
        f"plain, of the pruned widths, {EPOCHS['distill'] + EPOCHS['prune']} epochs": Path("plain/model.onnx"),
    }
    outputs = {name: test.outputs(onnxruntime.load(file, os.cpu_count() or 1)) for name, file in files.items()}
    rows = ["| YOLO26n, FP32 | size | mAP50-95 | mAP50 |", "| --- | --: | --- | --: |"]
    for name, file in files.items():
        score = test.score(outputs[name])
        rows.append(
            f"| {name} | {file.stat().st_size / 1e6:.1f} MB | {_interval(score)} | {100 * score['mAP50']:.1f} |"
        )
    ours, other = list(outputs.values())[2:]
    gain = test.drop("plain", ours, other)
    low, high = gain["drop_plain_low"], gain["drop_plain_high"]
    rows += ["", f"The teacher and the pruning give {gain['drop_plain']:+.2f} points ({low:+.2f} to {high:+.2f})."]
    return "\n".join(rows)


def of_validators(out: Path) -> str:
    """Return the table of our metric and Ultralytics' validator, on the same FP32 ONNX and the same test images.

    The validator counts boxes that stick out of the image as they are; in its files for pycocotools it cuts them at
    the edges, as the line does.
    """
    onnx, weights = out / "onnx/pruned.onnx", Path("build/teacher/model.safetensors")
    test = evaluation.read(DATA, out / "onnx")
    outputs = test.outputs(onnxruntime.load(onnx, os.cpu_count() or 1))
    cut = decode.boxes(outputs, test.preprocess, test.truth.shapes, test.truth.postprocess)
    uncut = [b * np.array([SIZE] * 4 + [1, 1]) for b in decode.cells(outputs, test.truth.postprocess)]
    placed = []
    for boxes, shape in zip(test.truth.boxes, test.truth.shapes, strict=True):
        edges = test.preprocess.place(np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], *shape)
        placed.append(np.c_[edges[:, :2], edges[:, 2:] - edges[:, :2], boxes[:, 4]])
    found = [("the line", cut, own_formula(placed, uncut))]
    for name, alike in (("Ultralytics' validator", False), ("the same, images resized as the line does", True)):
        found.append((name, *by_ultralytics(weights, onnx, evaluation.read(DATA, out / "onnx"), alike)))
    rows = [
        "| YOLO26n FP32, the same ONNX file | boxes cut at the edges, pycocotools | the same, Ultralytics' formula "
        "| not cut, Ultralytics' formula |",
        "| --- | --: | --: | --: |",
    ]
    for name, boxes, raw in found:
        matches = average_precision.match(test.truth.boxes, boxes, len(test.dataset.classes), "all")
        formula = own_formula(test.truth.boxes, boxes)
        exact = average_precision.mean(matches, None)
        rows.append(f"| {name} | {100 * exact:.2f} | {100 * formula:.2f} | {100 * raw:.2f} |")
    return "\n".join(rows)


def by_ultralytics(
    weights: Path, onnx: Path, test: evaluation.TestSet, alike: bool
) -> tuple[list[NDArray[np.float64]], float]:
    """Return what Ultralytics' validator sees on the test split, cut at the edges, and the mAP50-95 that it prints.

    Letterbox and decoding are its own, the ONNX file is ours; `alike` gives it images that the line has resized.
    """
    import torch

    net = models.load(weights)[0].net
    head, predict = net.model[-1], onnxruntime.load(onnx, os.cpu_count() or 1)
    head.end2end = True

    def forward(images: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        maps = [torch.from_numpy(m) for m in predict(images.numpy())]
        parts = {"scores": maps[::2], "boxes": maps[1::2]}
        raw = {name: torch.cat([m.flatten(2) for m in found], 2) for name, found in parts.items()}
        head.shape = None
        found: torch.Tensor = head.postprocess(head._inference({**raw, "feats": maps[::2]}).permute(0, 2, 1))
        return found

    net.predict = forward
    dataset, shapes = test.dataset, dict(zip(test.rows.tolist(), test.truth.shapes, strict=True))
    rows, image, boxes = dataset.rows, dataset.image, dataset.boxes
    scale = {row: SIZE / max(shape) if alike else 1.0 for row, shape in shapes.items()}

    def small(row: int) -> NDArray[Any]:
        before = image(row)
        height, width = preprocess.letterbox(before.shape[0], before.shape[1], SIZE, SIZE)[2:]
        return preprocess.resize(before, height, width, test.preprocess.antialias)

    def scaled(row: int) -> NDArray[np.float64]:
        return np.asarray(boxes(row) * np.array([scale[row]] * 4 + [1]))

    dataset.rows = lambda split: rows("test") if split == "val" else rows("test")[:1]  # type: ignore[method-assign]
    if alike:
        dataset.image, dataset.boxes = small, scaled  # type: ignore[method-assign]
    found: dict[int, NDArray[np.float64]] = {}
    with tempfile.TemporaryDirectory() as folder:
        still = training.Augment(rotate=0, shift=0, scale=0, flip=False)
        data = family._write(training.Setup(dataset, test.preprocess, test.task, still, 0), Path(folder))
        more = {"imgsz": SIZE, "batch": 8, "plots": False, "rect": False, "workers": 0, "mode": "val", "task": "detect"}
        validator = family._library("models.yolo.detect.val").DetectionValidator
        it = validator(args={"data": data, "project": folder, "device": "cpu", **more})
        update = it.update_metrics

        def note(predictions: list[Any], batch: Any) -> None:
            for place, one in enumerate(predictions):
                about = it._prepare_batch(place, batch)
                said = {k: v.numpy() for k, v in it.scale_preds(it._prepare_pred(one), about).items() if k != "extra"}
                row, edges = int(Path(about["im_file"]).stem), said["bboxes"]
                sides = np.c_[edges[:, :2], edges[:, 2:] - edges[:, :2]] / scale[row]
                seen = np.c_[sides, said["cls"], said["conf"]].astype(np.float64)
                found[row] = seen[np.argsort(-seen[:, 5], kind="stable")][: average_precision.MOST]
            update(predictions, batch)

        it.update_metrics = note
        printed = float(it(model=net)["metrics/mAP50-95(B)"])
    return [found[int(row)] for row in test.rows], printed


def own_formula(truth: list[NDArray[np.float64]], found: list[NDArray[np.float64]]) -> float:
    """Return mAP50-95 as Ultralytics' validator reckons it: its own matching, and its interpolation of precision."""
    import torch

    metrics, matcher = family._library("utils.metrics"), family._library("engine.validator").BaseValidator
    it = matcher.__new__(matcher)
    it.iouv = torch.linspace(0.5, 0.95, 10)
    right = []
    for boxes, said in zip(truth, found, strict=True):
        wanted, given = (torch.from_numpy(np.c_[b[:, :2], b[:, :2] + b[:, 2:4]]) for b in (boxes, said))
        classes = torch.from_numpy(said[:, 4]), torch.from_numpy(boxes[:, 4])
        right.append(it.match_predictions(*classes, metrics.box_iou(wanted, given)))
    every = np.concatenate(found)
    labels = np.concatenate(truth)[:, 4]
    return float(metrics.ap_per_class(np.concatenate(right), every[:, 5], every[:, 4], labels)[5].mean())


def _interval(m: dict[str, Any]) -> str:
    return f"{100 * m['mAP50-95']:.1f} ({100 * m['mAP50-95_low']:.1f} to {100 * m['mAP50-95_high']:.1f})"


if __name__ == "__main__":
    main()
