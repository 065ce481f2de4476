"""INT8 beside FP32 and beside the peers' defaults: speed, size and agreement of known networks on each CPU runtime.

The networks have random weights, and normalization statistics of the images: their speed, size and agreement with FP32
mean something, their accuracy does not. The images are crops of the two photographs that scikit-learn ships.
"""

import argparse
import contextlib
import os
import platform
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import yaml

from pipelines import calibrate, fp32, prepare, quantize, runtimes, search
from pipelines.calibration import Calibration
from pipelines.data import Dataset, Input
from pipelines.files import read_json, size_of, write_json
from pipelines.measure import interleaved
from tests import line

MODELS = ("resnet18", "mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_lite0")  # as timm names them
OPTIONS: dict[str, dict[str, Any]] = {
    "openvino": {"preset": "performance", "bias_correction": "fast", "ranges": "mean_minmax", "smooth_quant": False},
    "onnxruntime": {
        "ranges": "minmax", "per_channel": True, "activations": "u8", "operators": "all", "reduce_range": False
    },
    "litert": {"activations": "int8", "ranges": "minmax"},
}  # fmt: skip
PEERS = {
    "openvino": "NNCF's default",
    "onnxruntime": "`quantize_static`'s default",
    "litert": "AI Edge Quantizer's default",
}
EDGE, CROPS, IMAGES = 224, 160, 32
DOCS = Path("docs/targets.md")
MARKS = "<!-- measured -->", "<!-- end -->"


def main() -> None:
    """Print the table; write it into docs/targets.md with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--runtimes", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--json", type=Path, help="where the rows go too")
    parser.add_argument("--write", action="store_true", help="put the table into docs/targets.md")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    json = options.json.resolve() if options.json else None
    onnxruntime.set_default_logger_severity(3)  # it warns of initializers that the exporter left over
    with tempfile.TemporaryDirectory() as folder:
        root = project(Path(folder) / "project", options.runs)
        with contextlib.chdir(root):
            prepare.main(Path("build/data"))
            for model in options.models:
                export(model, Dataset(Path("build/data")), Path("build") / model)
                calibrate.main(Path("build/data"), Path("build") / model, Path("build") / model / "calibration")
                for runtime in options.runtimes:
                    rows.append(cell(model, runtime))
                    if json:
                        write_json(json, rows)
    text = table(rows, options.runs)
    print(text)
    if options.write:
        before, rest = DOCS.read_text(encoding="utf-8").split(MARKS[0])
        DOCS.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")


def project(root: Path, runs: int) -> Path:
    """Make a copy of the project whose data are crops of photographs, 3 x 224 x 224, and whose targets search."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    root.mkdir()
    generator = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(CROPS):
            side = int(generator.integers(120, 400))
            top, left = (int(generator.integers(0, edge - side)) for edge in photo.shape[:2])
            crop = Image.fromarray(photo[top : top + side, left : left + side]).resize((EDGE, EDGE))
            crop.save(root / "photos" / name / f"{number:03}.png")
    line.copy(root)
    targets = {
        name: {
            "runtime": name, "precision": "int8", "device": "cpu", "options": options, "search": "fast",
            "aim": {"agreement": {"min": 0.9}}, "gates": {},
        }
        for name, options in OPTIONS.items()
    }  # fmt: skip
    declared = yaml.safe_load((root / "params.yaml").read_text())
    declared["data"] |= {"source": {"format": "folder", "path": "photos"}, "channels": 3}
    declared["input"] = {"height": EDGE, "width": EDGE, "resize": "stretch"}
    declared["calibrate"]["images"] = IMAGES
    declared["measure"] |= {"threads": os.cpu_count(), "warmup": 20, "runs": runs, "batch": 8}
    (root / "params.yaml").write_text(yaml.safe_dump({**declared, "targets": targets}))
    return root


def export(name: str, dataset: Dataset, out: Path) -> None:
    """Write a network as `pruned.onnx` with `preprocess.json`, after its normalization layers have seen the images."""
    import timm
    import torch

    preprocess = dataset.preprocess(Input(height=EDGE, width=EDGE, resize="stretch"))
    write_json(out / "preprocess.json", preprocess.to_dict())
    write_json(out / "model.json", {"task": "classification", "classes": dataset.classes, "channels": 3})
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.ones_(module.weight)  # zero at the start of training: whole branches would compute nothing
    rows = dataset.rows("train")[:64]
    images = torch.from_numpy(np.stack([preprocess(dataset.image(row)) for row in rows]))
    with torch.no_grad():
        for _ in range(3):
            model.train()(images)
    fp32.export(model.eval(), (3, EDGE, EDGE), out / "pruned.onnx")


def cell(model: str, name: str) -> dict[str, Any]:
    """Return one row: what the search chose and what the peer's default gives, timed in turn with FP32."""
    folder, data, runtime = Path("build") / model, Path("build/data"), runtimes.load(name)
    out = folder / name
    quantize.main(name, data, folder, folder / "calibration", out)
    made = read_json(out / "quantize.json")
    frozen = Calibration(data, folder / "calibration")
    with search.bench(name, runtime, "cpu", folder / "pruned.onnx", frozen, data, folder) as bench:
        rival = folder / f"{name}-default"
        rival.mkdir()
        peer(name, folder / "pruned.onnx", frozen, rival)
        artifacts = {"fp32": bench.fp32, "ours": out, "peer": rival}
        files = {key: place / runtime.FILES[0] for key, place in artifacts.items()}
        settings = bench.split.measure.model_dump()
        times = interleaved(name, files, bench.split.shape, settings, "cpu")["times_ms"]
        p50 = {key: float(np.median(found)) for key, found in times.items()}
        row: dict[str, Any] = {"model": model, "runtime": name, "fp32_ms": p50["fp32"], "chosen": made["chosen"]}
        row["precision"], row["kept"] = made["precision"], len(made["kept"])
        row["fp32_bytes"] = sum(size_of(bench.fp32 / f) for f in runtime.FILES)
        for key in ("ours", "peer"):
            lost = bench.answers(bench.outputs(artifacts[key]))
            size = sum(size_of(artifacts[key] / f) for f in runtime.FILES)
            row[key] = {
                "speedup": p50["fp32"] / p50[key], "agreement": lost["agreement"], "error": lost["error"], "bytes": size
            }  # fmt: skip
    return row


def peer(name: str, source: Path, frozen: Calibration, out: Path) -> None:
    """Quantize as the runtime's own quantizer does when it is told nothing but the images."""
    file = out / runtimes.load(name).FILES[0]
    if name == "openvino":
        import nncf
        import openvino

        model = nncf.quantize(openvino.Core().read_model(source), nncf.Dataset(list(frozen.inputs())))
        openvino.save_model(model, file, compress_to_fp16=False)
    elif name == "onnxruntime":
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.images = frozen.inputs()

            def get_next(self) -> dict[str, Any] | None:
                image = next(self.images, None)
                return None if image is None else {"images": image}

        quantize_static(source, file, Reader())
    else:
        from ai_edge_quantizer import quantizer, recipe

        from pipelines import tflite

        work = quantizer.Quantizer(tflite.convert(source), recipe.static_wi8_ai8())
        # Float at both ends, as ours: else the one would be timed with the conversion, and the other without.
        for end in ("INPUT", "OUTPUT"):
            work.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
        images = [{"args_0": image.transpose(0, 2, 3, 1).copy()} for image in frozen.inputs()]
        work.quantize(work.calibrate({"serving_default": images})).export_model(file, overwrite=True)


def table(rows: list[dict[str, Any]], runs: int) -> str:
    """Return the rows as Markdown, with the machine and the day."""
    lines = [
        f"Measured {date.today()} on {os.cpu_count()} cores, {processor()}; medians of {runs} runs of one image each, "
        "in turn in one process.",
        "",
        "| network | runtime | FP32 | ours | peer's default | agreement, ours / peer | size, FP32 / ours / peer |",
        "| --- | --- | --: | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours, rival = row["ours"], row["peer"]
        kept = f", {row['kept']} operators in float" if row["kept"] else ""
        named = PEERS[row["runtime"]]
        sizes = " / ".join(f"{b / 1e6:.1f}" for b in (row["fp32_bytes"], ours["bytes"], rival["bytes"]))
        lines.append(
            f"| {row['model']} | {row['runtime']} | {row['fp32_ms']:.1f} ms "
            f"| **{ours['speedup']:.2f} x** ({row['precision']}{kept}) | {rival['speedup']:.2f} x ({named}) "
            f"| {ours['agreement']:.1%} / {rival['agreement']:.1%} | {sizes} MB |"
        )
    return "\n".join(lines)


def processor() -> str:
    """Return the name of the processor."""
    try:
        found = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    except OSError:
        found = []
    return found[0].partition(": ")[2] if found else platform.machine()


if __name__ == "__main__":
    main()
