"""Converts the trained models to FP32 ONNX, the form from which every target is made."""

from pathlib import Path

from pipelines import fp32, models
from pipelines.files import write_json
from pipelines.stage import run


def main(teacher: Path, student: Path, pruned: Path, out: Path) -> None:
    """Write `out`: `teacher.onnx`, `student.onnx`, `pruned.onnx`, `preprocess.json` and `model.json`.

    Input `images`, float32 N x C x H x W, and output `outputs`, N x classes, or those that the model names; N is
    dynamic. Raises StageError when a converted model differs from torch.
    """
    for name, folder in {"teacher": teacher, "student": student, "pruned": pruned}.items():
        model, spec = models.load(folder / "model.safetensors")
        size = spec["preprocess"]
        fp32.export(model, (spec["channels"], size["height"], size["width"]), out / f"{name}.onnx")
    write_json(out / "preprocess.json", spec["preprocess"])
    found = {k: spec[k] for k in ("task", "classes", "channels")}
    write_json(
        out / "model.json", {**found, "postprocess": model.postprocess} if hasattr(model, "postprocess") else found
    )


if __name__ == "__main__":
    run(main)
