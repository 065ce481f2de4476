"""Packs the bundle of a target: everything a device needs, and the signed evidence of what it is."""

import inspect
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import Field

from pipelines import bom, card, images, params, predict, preprocess, runtimes, signing, targets, tasks
from pipelines.data import Dataset
from pipelines.files import (
    copy_file,
    read_json,
    sha256_bytes,
    sha256_file,
    sha256_tree,
    to_json,
    tree,
    write_folder,
    write_json,
)
from pipelines.params import Section, section, value
from pipelines.preprocess import Preprocess
from pipelines.stage import StageError, run

SUMS = "SHA256SUMS"
FORMAT = 1  # of the evidence


SPDX = r"^[A-Za-z0-9.+()-]+( [A-Za-z0-9.+()-]+)*$"


class About(Section):
    """What only people know of a model. It stands in the papers of its bundles; what is left out is "not stated"."""

    supplier: str | None = Field(default=None, description="Who answers for the model.")
    license: str | None = Field(default=None, pattern=SPDX, description="SPDX: Apache-2.0, LicenseRef-Proprietary.")
    contact: str | None = Field(default=None, description="Where questions and complaints go.")
    intended_use: str | None = Field(default=None, description="What it is for.")
    users: list[str] | None = Field(default=None, description="Who is meant to use it.")
    out_of_scope: str | None = Field(default=None, description="What it must not be used for.")
    data: str | None = Field(default=None, description="Where the images come from.")
    data_license: str | None = Field(default=None, pattern=SPDX, description="SPDX, of the images.")
    sensitive_data: str | None = Field(default=None, description="Such as faces or number plates; or: none.")


class Export(Section):
    """What a bundle carries besides the model."""

    golden: int = Field(ge=1, le=256, description="Test images in the bundle, on which a machine proves itself.")
    golden_lost: int = Field(ge=0, description="How many of them a machine may get wrong that were right here.")
    about: About | None = Field(default=None, description="For the model card and the bill of materials.")


def main(
    target: str, artifact: Path, metrics: Path, verdict: Path, onnx: Path, data: Path, calibration: Path, out: Path
) -> None:
    """Write the bundle `out` of `target`, run it once on its golden images, and sign it.

    `artifact` is the folder of `quantize`, `metrics` and `verdict` are JSON files, `onnx`, `data` and `calibration`
    the folders of those stages. Raises StageError when a part is missing or the packed program does not run.
    """
    options = section("export", Export)
    settings, runtime, _ = targets.read(target)
    dataset = Dataset(data)
    if reason := read_json(artifact / "quantize.json").get("not_here"):
        print(f"{target}: no bundle: {reason}")
        with write_folder(out) as folder:
            (folder / "NOT_BUILT.txt").write_text(f"{reason}\n", encoding="utf-8")
        return
    with write_folder(out) as folder:
        for path in tree(artifact):
            inside = path.relative_to(artifact)
            copy_file(path, folder / ("quantize.json" if inside.name == "quantize.json" else Path("model") / inside))
        if not (folder / "model" / runtime.FILES[0]).is_file():
            raise StageError(f"{artifact}: has no {runtime.FILES[0]}; run: dvc repro quantize@{target}")
        measured = read_json(metrics)
        files = {p.relative_to(folder / "model").as_posix(): sha256_file(p) for p in tree(folder / "model")}
        if measured["sha256"] != files:
            raise StageError(f"{metrics}: measures another artifact than {artifact}; run: dvc repro validate@{target}")
        copy_file(onnx / "preprocess.json", folder / "preprocess.json")
        model = read_json(onnx / "model.json")
        classes = model["classes"]
        write_json(
            folder / "postprocess.json",
            {**tasks.load(model["task"]).POSTPROCESS, **model.get("postprocess", {}), "classes": classes},
        )
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        decoder = tasks.decoder(model["task"])
        (folder / "predict.py").write_text(program(runtime, decoder), encoding="utf-8")
        evidence = {
            "format": FORMAT,
            "project": value("project"),
            "target": target,
            **settings.model_dump(include={"runtime", "device"}),
            "precision": measured["precision"],  # a search may end in another one than was asked for
            "task": model["task"],
            "family": params.read().get("student", {}).get("family"),
            "about": options.about.model_dump(exclude_none=True) if options.about else {},
            "artifact": {"sha256": sha256_tree(folder / "model"), "files": files},
            "source": {"sha256": sha256_file(onnx / "pruned.onnx")},
            "data": {**dataset.info, "sha256": data_hash(data)},
            "calibration": read_json(calibration / "manifest.json")["digest"],
            "params": {f"targets.{target}": settings.model_dump()},
            "params_sha256": sha256_bytes(to_json(settings.model_dump()).encode()),
            "code": {"sha256": code_hash()},
            "packages": card.packages(runtimes.imports(runtime)),
            "metrics": measured,
            "verdict": read_json(verdict),
            "golden": golden(folder, dataset, options),
        }
        write_json(folder / "evidence.json", evidence)
        (folder / "MODEL_CARD.md").write_text(card.markdown(evidence), encoding="utf-8")
        write_json(folder / "sbom.cdx.json", bom.bom(evidence))
        sums = "".join(f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in tree(folder))
        (folder / SUMS).write_text(sums, encoding="utf-8")
        signing.sign(folder)
    print(f"{target}: {evidence['verdict']['verdict']}; bundle {sha256_file(out / SUMS)[:12]}")


def program(runtime: ModuleType, decoder: ModuleType) -> str:
    """Return the source of a bundle's `predict.py`: one file, which needs numpy and the runtime alone.

    `decoder` is the module `decode` of the task.
    """
    parts = [inspect.getsource(module) for module in (predict, images, preprocess, decoder)]
    lines = [line for part in parts for line in part.splitlines() if not line.startswith("from pipelines.")]
    load = inspect.getsource(runtime.load)
    artifact = runtime.FILES[0]
    return "\n".join(
        [
            *lines,
            f"\n\n{load}",
            "",
            "def model(threads: int = 1) -> Model:",
            '    """Return the model of the bundle in which this file lies."""',
            f"    return Model(Path(__file__).resolve().parent, load, decode, hits, {artifact!r}, threads)",
            "",
            "",
            'if __name__ == "__main__":',
            "    main(Path(__file__).resolve().parent, model)",
            "",
        ]
    )


def golden(folder: Path, dataset: Dataset, options: Export) -> dict[str, Any]:
    """Write the golden images and labels into the bundle, run its program on them, and return how it scores.

    The images come from the test split, in turn from each class, in the order of their content hash; they are
    brought to the model's size, N x H x W x C in the dataset's dtype.
    """
    prepare = Preprocess.from_dict(read_json(folder / "preprocess.json"))
    hashes = dataset.column("content_hash")
    places: dict[int, int] = {}
    turns = []
    for row in sorted(dataset.rows("test"), key=lambda r: str(hashes[r])):
        stratum = dataset.stratum(row)
        places[stratum] = places.get(stratum, 0) + 1
        turns.append((places[stratum], stratum, int(row)))
    rows = np.array([row for *_, row in sorted(turns)[: options.golden]], np.int64)
    pixels = np.stack([prepare.pixels(dataset.image(row)) for row in rows])
    labels = tasks.load(dataset.info["task"]).golden(dataset, rows, prepare)
    (folder / "golden").mkdir()
    np.save(folder / "golden" / "images.npy", pixels, allow_pickle=False)
    np.save(folder / "golden" / "labels.npy", labels, allow_pickle=False)
    try:
        model = runpy.run_path(str(folder / "predict.py"))["model"]()
        found = [model([image])[0] for image in pixels]
    except Exception as error:
        raise StageError(f"{folder.name}: the packed program does not run: {error}") from error
    correct = sum(model.hits(p, label) for p, label in zip(found, labels, strict=True))
    answers = len(labels) if labels.ndim == 1 else int((labels[:, :, 4] >= 0).sum())
    required = max(correct - options.golden_lost, 0)
    return {"images": len(rows), "answers": answers, "correct": correct, "required": required}


def data_hash(data: Path) -> str:
    """Return the SHA-256 of a dataset: of its description and its index, which holds every content hash."""
    return sha256_bytes("".join(sha256_file(data / name) for name in ("dataset.json", "index.parquet")).encode())


def code_hash() -> str:
    """Return the SHA-256 of the source of the stages, in the form of `sha256_tree`."""
    root = Path(__file__).parent
    lines = [f"{sha256_file(p)}  {p.relative_to(root).as_posix()}\n" for p in tree(root) if p.suffix == ".py"]
    return sha256_bytes("".join(lines).encode())


if __name__ == "__main__":
    run(main)
