"""`quantmill init`: what it sees in somebody's data, and that what it writes runs at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines import check, evaluation, params, project, survey
from pipelines.files import read_json
from pipelines.stage import StageError
from tests import line
from tests.pipelines import sources

ROOT = Path(__file__).parents[2]
SHRUNK = {k: v for k, v in line.SHRUNK.items() if k not in ("data", "contract", "input")}


def picture(kind: int, rng, size=(40, 48)) -> Image.Image:
    pixels = rng.integers(0, 60, (*size, 3), dtype=np.uint8)
    if kind == 0:
        pixels[8:32, 12:36] = 220
    else:
        pixels[:, :: 4 * kind] = 200
    return Image.fromarray(pixels)


def pictures(root: Path, splits: dict[str, int], classes=("blob", "stripes")) -> Path:
    """Write a folder per class, in folders of splits where they have names."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for kind, name in enumerate(classes):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                picture(kind, rng).save(root / split / name / f"{n:03}.png")
    return root


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return line.run(folder, sys.executable, "-m", "registry.cli", *words, check=False, PYTHONPATH=str(ROOT))


def test_a_folder_of_pngs(tmp_path):
    data = pictures(tmp_path / "photos", {"": 20})
    made = project.make(tmp_path / "My Shapes", data, None, None)
    assert made["project"] == "my-shapes" and made["path"] == "../photos" and made["format"] == "folder"
    assert (made["channels"], made["bits"], made["size"], made["classes"]) == (3, 8, 64, ["blob", "stripes"])
    root = tmp_path / "My Shapes"
    assert not check.check(root / "params.yaml")
    assert (root / ".git").is_dir() and (root / ".dvc").is_dir() and (root / "Makefile").is_file()
    assert "# What the model takes." in (root / "params.yaml").read_text()
    assert len(params.read(root / "params.yaml")["targets"]) == 3


def test_the_classify_layout_of_ultralytics_keeps_its_splits(tmp_path):
    data = pictures(tmp_path / "set", {"train": 12, "val": 4, "test": 6})
    found = survey.survey(data, "set")
    assert found.splits == {"train": 24, "val": 8, "test": 12} and found.classes == ["blob", "stripes"]
    (data / "data.yaml").write_text("train: train\nval: val\ntest: test\nnames: [blob, stripes]\n")
    found = survey.survey(data, "set")
    assert found.source == {"format": "ultralytics", "path": "set", "yaml": "data.yaml"}
    project.make(tmp_path / "made", data / "data.yaml", "made", 32)
    assert not check.check(tmp_path / "made" / "params.yaml")


def test_many_channels_and_sixteen_bits_are_seen(tmp_path):
    for name in ("clear", "cloud"):
        (tmp_path / "fields" / name).mkdir(parents=True)
        for n in range(6):
            pixels = np.random.default_rng(n).integers(0, 9000, (20, 24, 5), dtype=np.uint16)
            np.save(tmp_path / "fields" / name / f"{n}.npy", pixels)
    found = survey.survey(tmp_path / "fields", "fields")
    assert (found.channels, found.bits, found.side, found.edge) == (5, 16, 20, (20, 24))


def test_a_table_and_arrays_are_seen(tmp_path):
    data = pictures(tmp_path / "a", {"": 4})
    rows = [f"{p.relative_to(data)},{p.parent.name}" for p in sorted(data.rglob("*.png"))]
    (data / "labels.csv").write_text("\n".join(["file,Class", *rows]) + "\n")
    found = survey.survey(data, "a")
    assert found.source["format"] == "table" and found.source["label"] == "Class" and found.images == 8
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b" / "x_train.npy", np.zeros((6, 10, 12), np.uint8))
    np.save(tmp_path / "b" / "y_train.npy", np.array([0, 1] * 3))
    found = survey.survey(tmp_path / "b", "b")
    assert found.source["format"] == "arrays" and (found.channels, found.smallest) == (1, 3)


def test_nothing_is_overwritten(tmp_path):
    data = pictures(tmp_path / "photos", {"": 4})
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "dvc.yaml").write_text("mine")
    with pytest.raises(StageError, match=r"made/dvc.yaml: is there already, and is not overwritten"):
        project.make(tmp_path / "made", data, None, None)
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["dvc.yaml"]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.mkdir(), "no known form of data; give each class a folder of images"),
        (lambda root: (root / "one").mkdir(parents=True), "no image found"),
        (lambda root: [(root / "one").mkdir(parents=True), (root / "one/a.png").write_bytes(b"x")], "can be read"),
    ],
)
def test_data_that_are_none_say_so(tmp_path, write, said):
    write(tmp_path / "data")
    with pytest.raises(StageError, match=said):
        project.make(tmp_path / "made", tmp_path / "data", None, None)
    assert not (tmp_path / "made").exists()


def test_the_line_depends_on_the_code_by_its_identity_and_on_no_file_of_it():
    stages = yaml.safe_load(project.line())["stages"]
    assert set(stages) == set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    for name, stage in stages.items():
        body = stage.get("do", stage)
        assert body["params"][0] == "quantmill", name
        assert not [d for d in body["deps"] if d.startswith(("pipelines", "registry", "flows"))], name


def test_other_code_than_the_declared_is_a_mistake(tmp_path):
    project.make(tmp_path / "made", pictures(tmp_path / "photos", {"": 4}), None, None)
    file = tmp_path / "made" / "params.yaml"
    file.write_text(file.read_text().replace(project.identity(), "0.0.1+00000000"))
    (mistake,) = check.check(file)
    assert mistake.startswith("params.yaml: quantmill: is 0.0.1+00000000, installed is ")


def test_what_the_templates_are_made_of_is_in_the_package():
    made = {"line": "dvc.yaml", "digits": "params.yaml", "detection": "examples/detection/params.yaml"}
    for name, source in made.items():
        assert (project.TEMPLATES / f"{name}.yaml").read_bytes() == (ROOT / source).read_bytes()


def test_boxes_make_a_project_with_a_detector(tmp_path, monkeypatch):
    sources.voc(tmp_path / "source")
    made = project.make(tmp_path / "cats", tmp_path / "source", None, None)
    monkeypatch.chdir(tmp_path / "cats")
    found = params.read(tmp_path / "cats" / "params.yaml")
    assert made["task"] == found["task"] == "detection" and check.check(Path("params.yaml")) == []
    assert {found[model]["family"] for model in ("teacher", "student")} == {"centers"}
    assert (tmp_path / "cats" / "params.yaml").read_text().startswith("# yaml-language-server: $schema=params.schema")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project that `quantmill init` made, shrunk, and its line run."""
    root = tmp_path_factory.mktemp("init")
    pictures(root / "set", {"train": 40, "val": 8, "test": 24})
    done = command(root, "init", "shapes", "--from", "set", "--size", "16")
    assert done.returncode == 0 and "next: cd shapes && quantmill check && dvc repro" in done.stdout, done.stderr
    line.change(root / "shapes", SHRUNK)
    file = root / "shapes" / "params.yaml"
    kept = {n: t for n, t in params.read(file)["targets"].items() if n == "openvino-int8"}
    file.write_text(yaml.safe_dump({**params.read(file), "targets": kept}, sort_keys=False))
    return root / "shapes", line.run(root / "shapes", "dvc", "repro", PYTHONPATH=str(ROOT))


@pytest.mark.slow
def test_the_whole_line_runs_in_it_and_then_has_nothing_to_do(made):
    root, done = made
    assert {"prepare", "train", "export@openvino-int8", "report", "register"} <= set(line.executed(done))
    assert (root / "build" / "report" / "index.html").is_file()
    assert line.executed(line.run(root, "dvc", "repro", PYTHONPATH=str(ROOT))) == []
    said = command(root, "report", "--json")
    assert said.returncode == 0 and '"project"' not in said.stderr
    assert os.path.isfile(root / "build" / "bundles" / "openvino-int8" / "signature.json")


@pytest.fixture(scope="module")
def given(made):
    """A project around the ONNX file that the other one made, and its line run."""
    root = made[0].parent
    done = command(root, "init", "given", "--from", "set", "--model", "shapes/build/onnx/pruned.onnx")
    assert done.returncode == 0 and "the model is given: set input.mean and std" in done.stdout, done.stderr
    file = root / "given" / "params.yaml"
    found = params.read(file)
    assert found["input"] | {"mean": 0, "std": 0} == {
        "height": 16,
        "width": 16,
        "resize": "stretch",
        "mean": 0,
        "std": 0,
    }
    assert not {"threads", "teacher", "train", "distill", "prune", "augment"} & set(found)
    assert not any("compression" in target["gates"] for target in found["targets"].values()), "there is no teacher"
    trained_with = read_json(root / "shapes" / "build" / "onnx" / "preprocess.json")
    found["input"] |= {key: trained_with[key] for key in ("mean", "std")}
    found["targets"] = {n: t for n, t in found["targets"].items() if n == "openvino-int8"}
    found |= {k: line.merge(found[k], SHRUNK[k]) for k in ("calibrate", "measure")}
    file.write_text(yaml.safe_dump(found, sort_keys=False))
    return root / "given", line.run(root / "given", "dvc", "repro", PYTHONPATH=str(ROOT))


@pytest.mark.slow
def test_a_given_model_takes_the_line_from_convert_on_and_scores_what_it_scored(made, given):
    root, done = given
    ran = line.executed(done)
    assert ran[:4] == ["check", "prepare", "check_data", "convert"] and "register" in ran
    assert not {"train", "distill", "prune"} & set(line.run(root, "dvc", "stage", "list", "--name-only").stdout.split())
    before = read_json(made[0] / "build" / "baseline" / "metrics.json")["pruned"]
    after = read_json(root / "build" / "baseline" / "metrics.json")
    assert list(after) == ["pruned"] and after["pruned"]["accuracy"] == before["accuracy"]
    assert after["pruned"]["slices"] == before["slices"] and after["pruned"]["drop_teacher"] is None
    one, other = (evaluation.read_outputs(r / "build" / "baseline" / "pruned.npz")[0] for r in (made[0], root))
    assert np.allclose(one, other, atol=1e-5)
    target = read_json(root / "build" / "metrics" / "openvino-int8.json")
    assert target["speedup_teacher"] is None and target["speedup"] > 0
    assert target["compression"] == (root / "build" / "onnx" / "pruned.onnx").stat().st_size / target["size_bytes"]
    assert (
        "given-fp32" in line.run(root, sys.executable, "-m", "pipelines.summary", "build", PYTHONPATH=str(ROOT)).stdout
    )
    page = (root / "build" / "report" / "index.html").read_text()
    assert "given-fp32" in page and "teacher-fp32" not in page and "than the FP32 model" in page
    assert line.executed(line.run(root, "dvc", "repro", PYTHONPATH=str(ROOT))) == []


@pytest.mark.slow
def test_sections_that_train_are_refused_beside_a_given_model_and_missed_without_one(given, tmp_path):
    found = params.read(given[0] / "params.yaml")
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({**found, "train": params.read(ROOT / "params.yaml")["train"]})
    )
    (mistake,) = check.check(tmp_path / "params.yaml")
    assert "student.family: onnx is a finished model, so nothing uses train; take it out" in mistake
    student = {"family": "separable", "stem": 8, "widths": [8], "depths": [1]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**found, "student": student}))
    assert "params.yaml: teacher: missing; add it (see params.schema.json)" in check.check(tmp_path / "params.yaml")


def test_the_line_of_a_given_model_covers_what_its_stages_import():
    from tests.test_dag import PLUMBING, closure

    stages = yaml.safe_load((project.TEMPLATES / "given.yaml").read_text())["stages"]
    for stage in stages.values():
        module = stage["cmd"].split()[2].replace(".", "/") + ".py"
        assert not closure({module}) - PLUMBING - set(stage["deps"])
    assert "build/student" not in project.line(given=True)
