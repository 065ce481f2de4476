"""What other quantizers make of the same model and images when they are told nothing else."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.calibration import Calibration

Peer = Callable[[Path, Calibration, Path], None]

# Run by the Python of an environment of its own: olive-ai pins other libraries than ours.
OLIVE = """
import sys
from olive.workflows import run

model, images, out, script = sys.argv[1:]
skip = {"type": "skip_pre_process"}, {"type": "skip_post_process"}
accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
run({
    "input_model": {"type": "ONNXModel", "model_path": model},
    "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
    "data_configs": [{
        "name": "frozen", "user_script": script,
        "load_dataset_config": {"type": "frozen_images", "params": {"path": images}},
        "pre_process_data_config": skip[0], "post_process_data_config": skip[1],
        "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 1}},
    }],
    "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "frozen"}},
    "host": "here", "target": "here", "evaluate_input_model": False, "output_dir": out,
})
"""
IMAGES = """
import numpy as np
from olive.data.registry import Registry


@Registry.register_dataset()
def frozen_images(path, **_):
    images = np.load(path)

    class Images:
        def __len__(self):
            return len(images)

        def __getitem__(self, place):
            return {"images": images[place]}, 0

    return Images()
"""


def of(runtime: str, olive: Path | None) -> dict[str, Peer]:
    """Return the peers of a runtime by name; each writes the artifact of an FP32 ONNX file into a folder."""
    own: dict[str, dict[str, Peer]] = {
        "openvino": {"NNCF": nncf},
        "onnxruntime": {"quantize_static": quantize_static},
        "litert": {"AI Edge Quantizer": ai_edge},
    }
    if runtime == "onnxruntime" and olive:
        own[runtime]["Olive"] = lambda source, frozen, out: by_olive(olive, source, frozen, out)
    return own[runtime]


def nncf(source: Path, frozen: Calibration, out: Path) -> None:
    """`nncf.quantize` of the model as OpenVINO reads it."""
    import nncf as library
    import openvino

    model = library.quantize(openvino.Core().read_model(source), library.Dataset(list(frozen.inputs())))
    openvino.save_model(model, out / "model.xml", compress_to_fp16=False)


def quantize_static(source: Path, frozen: Calibration, out: Path) -> None:
    """ONNX Runtime's `quantize_static`."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = frozen.inputs()

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"images": image}

    quantization.quantize_static(source, out / "model.onnx", Reader())


def ai_edge(source: Path, frozen: Calibration, out: Path) -> None:
    """The AI Edge Quantizer's recipe for INT8 weights and activations."""
    from ai_edge_quantizer import quantizer, recipe

    from pipelines import tflite

    work = quantizer.Quantizer(tflite.convert(source), recipe.static_wi8_ai8())
    # Float at both ends, as ours: else the one would be timed with the conversion, and the other without.
    for end in ("INPUT", "OUTPUT"):
        work.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
    images = [{"args_0": image.transpose(0, 2, 3, 1).copy()} for image in frozen.inputs()]
    work.quantize(work.calibrate({"serving_default": images})).export_model(out / "model.tflite", overwrite=True)


def by_olive(python: Path, source: Path, frozen: Calibration, out: Path) -> None:
    """Olive's pass `OnnxStaticQuantization`. Raises RuntimeError with its last line when it fails."""
    folder = (out / "olive").resolve()
    folder.mkdir()
    (folder / "olive_run.py").write_text(OLIVE, encoding="utf-8")
    (folder / "olive_images.py").write_text(IMAGES, encoding="utf-8")
    np.save(folder / "images.npy", np.concatenate(list(frozen.inputs())))
    words = [source, folder / "images.npy", folder / "out", folder / "olive_images.py"]
    quiet = {"CI": "true", "OLIVE_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [python.absolute(), folder / "olive_run.py", *(word.resolve() for word in words)],
        cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    made = sorted((folder / "out").glob("**/*.onnx"))
    if done.returncode or not made:
        raise RuntimeError(last_line(done.stderr))
    shutil.copyfile(made[0], out / "model.onnx")


def ultralytics(model: Any, source: Path, frozen: Calibration, out: Path) -> None:
    """Ultralytics' own INT8 export to OpenVINO of a detector, calibrated as it does; its file decodes boxes too."""
    import yaml
    from PIL import Image
    from ultralytics import YOLO

    for part in ("images", "labels"):
        (out / "data" / part / "val").mkdir(parents=True)
    for number, row in enumerate(frozen.rows):
        pixels = frozen.preprocess.pixels(frozen.dataset.image(row))
        Image.fromarray(pixels).save(out / "data/images/val" / f"{number:03}.png")
        (out / "data/labels/val" / f"{number:03}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    classes = dict(enumerate(frozen.dataset.classes))
    described = {"path": str((out / "data").resolve()), "train": "images/val", "val": "images/val", "names": classes}
    file = (out / "data.yaml").resolve()
    file.write_text(yaml.safe_dump(described))
    with contextlib.chdir(out):
        whole = YOLO("yolo26n.yaml")
        model.net.args, model.net.task = whole.model.args, whole.task
        whole.model = model.net
        edge = frozen.preprocess.height
        made = Path(whole.export(format="openvino", int8=True, imgsz=edge, data=str(file), verbose=False)).resolve()
    (xml,) = made.glob("*.xml")
    shutil.copyfile(xml, out / "model.xml")
    shutil.copyfile(xml.with_suffix(".bin"), out / "model.bin")


def last_line(text: str) -> str:
    """Return the last line of an error, shortened."""
    lines = text.strip().splitlines() or ["no message"]
    return " ".join(lines[-1].split())[:200]
