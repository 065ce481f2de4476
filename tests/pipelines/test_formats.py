"""Every data format ends in the same index."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines import check_data, formats, params
from pipelines.files import sha256_tree
from pipelines.stage import StageError
from tests.pipelines import sources

OWN = sorted(set(sources.ALL) - {"digits", "digit_scenes"})


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_format_is_tested():
    assert sorted(sources.ALL) == formats.names()


@pytest.mark.parametrize("name", OWN)
def test_brings_images_classes_and_splits(name):
    make, task, splits = sources.ALL[name]
    dataset = sources.run(make(Path("source")), task)
    assert dataset.classes == ["cat", "dog"] and dataset.info["rejected"] == 0
    assert sorted(dataset.info["images"].values()) == [2, 2, 4]
    found = {dataset.image(row).tobytes(): row for row in range(8)}
    for n in range(8):
        row = found[sources.pixels(n).tobytes()]
        assert dataset.labels_of(row).tolist() == [n % 2]
        if task == "detection":
            np.testing.assert_allclose(dataset.boxes(row), [[*sources.BOX, n % 2]], atol=1e-9)
        if splits:
            assert dataset.column("split")[row] == ("train", "train", "val", "test")[n // 2 % 4]


@pytest.mark.parametrize("name", OWN)
def test_a_second_run_decodes_nothing_and_gives_the_same_bytes(name, capsys):
    make, task, _ = sources.ALL[name]
    source = make(Path("source"))
    sources.run(source, task, "first")
    assert "8 decoded" in capsys.readouterr().out
    sources.run(source, task, "second")
    assert " 0 decoded" in capsys.readouterr().out
    shutil.rmtree(".quantmill")
    sources.run(source, task, "third")
    assert sha256_tree(Path("first")) == sha256_tree(Path("second")) == sha256_tree(Path("third"))


@pytest.mark.parametrize("name", sorted(sources.ALL))
def test_the_other_task_is_refused_or_served(name):
    make, task, _ = sources.ALL[name]
    other = "detection" if task == "classification" else "classification"
    options = make(Path("source"))
    if name == "ultralytics":
        return  # serves both
    module = formats.load(options.pop("format"))
    with pytest.raises(StageError, match=f"data.source.format: '{name}' .* task '{other}'"):
        module.read(module.Options(**options), other)


def test_a_broken_cache_costs_time_only(capsys):
    source = sources.folder(Path("source"))
    sources.run(source)
    for file in Path(".quantmill").glob("images.sqlite*"):
        file.unlink()
    Path(".quantmill/images.sqlite").write_bytes(b"no database at all" * 100)
    sources.run(source, out="again")
    assert sha256_tree(Path("data")) == sha256_tree(Path("again"))
    sources.run(source, out="third")
    assert " 0 decoded" in capsys.readouterr().out.splitlines()[-1]


def test_folder_keeps_splits_in_any_spelling():
    dataset = sources.run(sources.folder(Path("source"), splits=True))
    assert dataset.info["images"] == {"train": 4, "val": 2, "test": 2}


def test_ultralytics_classification_takes_class_folders():
    root = Path("source")
    sources.folder(root, splits=True)
    names = {
        "path": "/datasets/somewhere",
        "train": "../train",
        "val": "valid",
        "test": "test",
        "names": ["dog", "cat"],
    }
    (root / "data.yaml").write_text(yaml.safe_dump(names))
    dataset = sources.run({"format": "ultralytics", "path": "source", "yaml": "data.yaml"})
    assert dataset.classes == ["dog", "cat"] and dataset.info["images"] == {"train": 4, "val": 2, "test": 2}


def test_ultralytics_takes_lists_polygons_and_images_without_objects():
    root = Path("source")
    source = sources.ultralytics(root)
    (root / "labels/train/0.txt").write_text("1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n")
    (root / "labels/train/1.txt").unlink()
    (root / "train.txt").write_text("./images/train/0.png\nimages/train/1.png\n")
    described = yaml.safe_load((root / "data.yaml").read_text())
    (root / "data.yaml").write_text(yaml.safe_dump({**described, "train": "train.txt"}))
    dataset = sources.run(source, "detection")
    rows = {path: row for row, path in enumerate(dataset.column("path"))}
    assert dataset.boxes(rows["images/train/0.png"]).tolist() == [[8, 6, 8, 12, 1]]
    assert dataset.boxes(rows["images/train/1.png"]).shape == (0, 5)
    assert dataset.info["images"] == {"train": 2, "val": 2, "test": 2}


def test_table_may_be_parquet_and_may_have_no_splits():
    source = sources.table(Path("source"), suffix="parquet")
    assert sources.run(source).info["images"] == {"train": 4, "val": 2, "test": 2}
    assert sources.run({**source, "split": None}, out="made").info["images"] == {"train": 4, "val": 2, "test": 2}


def test_a_split_that_the_source_lacks_is_cut_out_of_training():
    source = sources.table(Path("source"), count=40)
    rows = Path("source/table.csv").read_text().replace(",test", ",train")
    Path("source/table.csv").write_text(rows)
    dataset = sources.run(source)
    assert dataset.info["images"] == {"train": 22, "val": 10, "test": 8}
    given = {line.split(",")[0]: line.split(",")[2] for line in rows.splitlines()[1:]}
    kept = [path for path, split in zip(dataset.column("path"), dataset.column("split"), strict=True) if split == "val"]
    assert {given[path] for path in kept} == {"val"} and len(kept) == 10


BCCD = Path(__file__).parents[3] / "shared/data/bccd"


@pytest.mark.skipif(not BCCD.is_dir(), reason="no ../shared/data/bccd beside the repository")
def test_bccd_as_it_comes_and_under_its_contract():
    """364 photographs, 4,888 cells. Two annotations are single pixels, which the contract finds."""
    dataset = sources.run({"format": "voc", "path": str(BCCD)}, "detection")
    assert dataset.classes == ["Platelets", "RBC", "WBC"] and dataset.info["rejected"] == 0
    assert sum(dataset.info["images"].values()) == 364
    assert sum(len(dataset.boxes(row)) for row in range(364)) == 4888
    found = params.read()
    found["contract"]["edge"]["max"] = 640
    found["contract"]["balance"]["max"] = 20
    found["contract"]["boxes"]["area"] = {"level": "warn", "min": 4}
    Path("params.yaml").write_text(yaml.safe_dump(found))
    check_data.main(Path("data"), Path("contract"))
    checks = {one["check"]: one for one in json.loads(Path("contract/results.json").read_text())["checks"]}
    assert [name for name, one in checks.items() if not one["success"]] == ["box_area"]
    assert checks["box_area"]["unexpected"] == 2 and checks["box_area"]["values"] == 4888


def scenes(seed):
    options = {"format": "digit_scenes", "path": ".", "seed": seed, "images": 20, "size": 64, "digits": 4}
    return sources.run({**options, "smallest": 12, "largest": 24}, "detection", f"scenes-{seed}")


def test_scenes_come_from_the_seed_and_their_boxes_hold_the_digits():
    dataset, other = scenes(0), scenes(1)
    assert dataset.info["images"] == {"train": 14, "val": 2, "test": 4} and dataset.classes == list("0123456789")
    assert set(dataset.column("pixel_hash")).isdisjoint(other.column("pixel_hash"))
    shutil.rmtree(".quantmill")
    before = sha256_tree(Path("scenes-0"))
    scenes(0)
    assert sha256_tree(Path("scenes-0")) == before
    heights = np.concatenate([dataset.boxes(row)[:, 3] for row in range(20)])
    assert len(heights) > 20 and heights.min() >= 5 and heights.max() <= 24


def test_scenes_of_another_task_or_of_sizes_that_do_not_fit_are_refused():
    options = formats.load("digit_scenes").Options(
        path=".", seed=0, images=10, size=64, digits=4, smallest=30, largest=20
    )
    with pytest.raises(StageError, match="must grow in this order"):
        formats.load("digit_scenes").read(options, "detection")
