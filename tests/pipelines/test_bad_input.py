"""Bad input: each kind is left out with one clear line, and the good images stay."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import check_data, prepare
from pipelines.stage import StageError
from tests.pipelines import sources

NAN = float("nan")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(dataset, path: str, reason: str, out: str = "data") -> None:
    """Exactly one file was left out, with a reason of one line; the eight good ones are there."""
    found = sources.rejected(out)
    assert list(found) == [path] and reason in found[path] and "\n" not in found[path]
    assert sum(dataset.info["images"].values()) == 8 and dataset.info["rejected"] == 1


def truncated(path: Path) -> None:
    sources.picture(path, 50)
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (truncated, "cannot be decoded"),
        (lambda path: path.write_text("not a photograph"), "not an image in a known format"),
        (lambda path: Image.new("1", (30000, 30000)).save(path), "more than 100,000,000 pixels"),
        (lambda path: path.symlink_to("/etc/hostname"), "a link that leaves the folder"),
        (lambda path: path.symlink_to("bad.png"), "a link that lea"),
        (lambda path: path.symlink_to("nothing.png"), "a link that leads to no file"),
        (lambda path: path.symlink_to("../dog"), "a link that leads to no file"),
    ],
    ids=[
        "zero bytes",
        "truncated",
        "text",
        "30,000 x 30,000",
        "link",
        "circular link",
        "dead link",
        "link to a folder",
    ],
)
def test_files(spoil, reason):
    source = sources.folder(Path("source"))
    spoil(Path("source/cat/bad.png"))
    one_line(sources.run(source), "cat/bad.png", reason)


def test_channels_and_bits_that_are_not_the_declared_ones():
    source = sources.folder(Path("source"))
    np.save("source/cat/five.npy", sources.pixels(1, 5))
    np.save("source/cat/deep.npy", sources.pixels(1, 3, np.uint16))
    dataset = sources.run(source)
    assert sources.rejected() == {
        "cat/five.npy": "has 5 channel(s); data.channels is 3",
        "cat/deep.npy": "has 16 bits per channel; data.bits is 8",
    }
    assert dataset.info["channels"] == 3 and sum(dataset.info["images"].values()) == 8


def test_a_name_that_is_not_utf8():
    source = sources.folder(Path("source"))
    shutil.copy("source/cat/0.png", os.fsencode("source/cat/") + b"caf\xe9.png")
    one_line(sources.run(source), "cat/caf\\xe9.png", "its name is not UTF-8")


def test_a_name_with_a_line_break_still_is_one_line(capsys):
    source = sources.folder(Path("source"))
    Path("source/cat/a\nb.png").write_bytes(b"")
    sources.run(source)
    assert "left out: cat/a\\nb.png: the file is empty (0 bytes)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../../secret.png", "link.png", "dir/x.png"])
def test_a_path_in_an_annotation_that_leaves_the_source(name):
    source = sources.voc(Path("source"))
    sources.picture(Path("secret.png"), 5)
    Path("outside").mkdir()
    sources.picture(Path("outside/x.png"), 6)
    Path("source/links").mkdir()
    sources.annotate(Path("source"), "bad", "cat", image=name)
    if name == "link.png":
        Path("source/JPEGImages/link.png").symlink_to(Path("secret.png").resolve())
    if name == "dir/x.png":
        Path("source/JPEGImages/dir").symlink_to(Path("outside").resolve())
    dataset = sources.run(source, "detection")
    found = sources.rejected()
    assert all("leaves the folder" in reason for reason in found.values()), found
    assert len(found) >= 1 and sum(dataset.info["images"].values()) == 8


def test_a_path_in_a_table_that_leaves_the_source():
    source = sources.table(Path("source"))
    sources.picture(Path("secret.png"), 5)
    with Path("source/table.csv").open("a") as file:
        file.write("../secret.png,cat,train\n")
    one_line(sources.run(source), "../secret.png", "its path leaves the folder")


def spoiled_voc(box: tuple) -> dict:
    source = sources.voc(Path("source"))
    sources.picture(Path("source/JPEGImages/bad.png"), 50)
    sources.annotate(Path("source"), "bad", "cat", box)
    return source


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((10, 10, -5, 4), "is reversed"),
        ((10, 10, 4, -5), "is reversed"),
        ((NAN, 1, 5, 5), "a side is no number"),
        ((1, 1, float("inf"), 5), "a side is no number"),
        ((40, 2, 5, 5), "wholly outside the image of 32 x 24"),
        ((-20, 2, 5, 5), "wholly outside the image of 32 x 24"),
    ],
)
def test_boxes_that_are_none(box, reason):
    dataset = sources.run(spoiled_voc(box), "detection")
    one_line(dataset, "JPEGImages/bad.png", reason)


@pytest.mark.parametrize(
    ("box", "check"),
    [((-3, 2, 10, 10), "box_outside"), ((25, 2, 10, 10), "box_outside"), ((2, 2, 1, 1), "box_area")],
)
def test_boxes_that_break_the_contract(box, check):
    dataset = sources.run(spoiled_voc(box), "detection")
    assert dataset.info["rejected"] == 0
    row = dataset.column("path").tolist().index("JPEGImages/bad.png")
    x, y, width, height = dataset.boxes(row)[0, :4]
    assert x >= 0 and y >= 0 and x + width <= 32 and y + height <= 24
    with pytest.raises(StageError, match=rf"{check}: 1 of 9 not .*, such as JPEGImages/bad.png \("):
        check_data.main(Path("data"), Path("contract"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 1: class 2; names has 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "line 1: class -1; names has 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "line 1: class 0.5; names has 0 to 1"),
        ("0 nan 0.5 0.1 0.1", "a side is no number"),
        ("0 0.5 0.5 -0.1 0.1", "reversed or without area"),
        ("0 0.5 0.5 0 0.1", "reversed or without area"),
        ("0 1.5 0.5 0.1 0.1", "wholly outside"),
        ("0 0.5 0.5", "2 numbers after the class"),
        ("cat 0.5 0.5 0.1 0.1", "is not a class id and numbers"),
        ("inf 0.5 0.5 0.1 0.1", "is not a class id and numbers"),
    ],
)
def test_lines_of_ultralytics_labels(line, reason):
    source = sources.ultralytics(Path("source"))
    sources.picture(Path("source/images/train/bad.png"), 50)
    Path("source/labels/train/bad.txt").write_text(line + "\n")
    one_line(sources.run(source, "detection"), "images/train/bad.png", reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 5}, "category 5 is not in categories"),
        ({"category_id": [3]}, "no category_id and bbox"),
        ({"bbox": [1, 2, 3]}, "no category_id and bbox"),
        ({"bbox": [1, 2, None, 4]}, "no category_id and bbox"),
        ({"bbox": [1, 2, -3, 4]}, "reversed or without area"),
        ({"bbox": [NAN, 2, 3, 4]}, "a side is no number"),
        ({"bbox": [100, 2, 3, 4]}, "wholly outside"),
    ],
)
def test_coco_annotations(change, reason):
    source = sources.coco(Path("source"))
    sources.picture(Path("source/train/bad.png"), 50)
    file = Path("source/train.json")
    found = json.loads(file.read_text())
    found["images"].append({"id": 50, "file_name": "bad.png"})
    found["annotations"].append({"id": 500, "image_id": 50, "category_id": 3, "bbox": [1, 1, 5, 5], **change})
    file.write_text(json.dumps(found))
    one_line(sources.run(source, "detection"), "train/bad.png", reason)


def test_coco_boxes_of_an_image_that_is_not_listed():
    source = sources.coco(Path("source"))
    file = Path("source/train.json")
    found = json.loads(file.read_text())
    found["annotations"].append({"id": 500, "image_id": 77, "category_id": 3, "bbox": [1, 1, 5, 5]})
    file.write_text(json.dumps(found))
    one_line(sources.run(source, "detection"), "train.json#image_id/77", "that the file does not list")


def test_labels_without_an_image_and_the_reverse():
    source = sources.voc(Path("source"))
    sources.annotate(Path("source"), "lonely", "cat")
    sources.picture(Path("source/JPEGImages/unlabelled.png"), 50)
    dataset = sources.run(source, "detection")
    assert sources.rejected() == {
        "JPEGImages/lonely.png": "no such image; its annotation has nothing to describe",
        "JPEGImages/unlabelled.png": "an image without an annotation; an image with no object needs an empty one",
    }
    assert sum(dataset.info["images"].values()) == 8


def test_ultralytics_labels_without_an_image():
    source = sources.ultralytics(Path("source"))
    Path("source/labels/val/lonely.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    one_line(sources.run(source, "detection"), "labels/val/lonely.txt", "labels without an image")


def test_a_name_in_two_splits():
    source = sources.voc(Path("source"))
    sources.picture(Path("source/JPEGImages/both.png"), 50)
    sources.annotate(Path("source"), "both", "cat")
    for split in ("train", "test"):
        with Path(f"source/ImageSets/Main/{split}.txt").open("a") as file:
            file.write("both\n")
    one_line(sources.run(source, "detection"), "JPEGImages/both.png", "stands in the splits test and train")


def test_a_path_twice_in_a_table_counts_once():
    source = sources.table(Path("source"))
    with Path("source/table.csv").open("a") as file:
        file.write("photos/0.png,cat,test\n")
    dataset = sources.run(source)
    one_line(dataset, "photos/0.png", "more than once (in train and test)")
    row = dataset.column("path").tolist().index("photos/0.png")
    assert dataset.column("split")[row] == "train"


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation><filename>&c;</filename></annotation>"""
OUTSIDE = (
    """<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation><filename>&x;</filename></annotation>"""
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "declares a document type or entities"),
        (OUTSIDE, "declares a document type or entities"),
        ("<annotation><filename>x.png", "not valid XML"),
        ("", "not valid XML"),
        ("<annotation/>", "names no image"),
    ],
    ids=["entity bomb", "outside entity", "cut", "empty", "no name"],
)
def test_xml(text, reason):
    source = sources.voc(Path("source"))
    Path("source/Annotations/bad.xml").write_text(text)
    one_line(sources.run(source, "detection"), "Annotations/bad.xml", reason)


def test_an_empty_class_breaks_the_contract_by_name():
    source = sources.folder(Path("source"), splits=True)
    Path("source/train/bird").mkdir()
    dataset = sources.run(source)
    assert dataset.classes == ["bird", "cat", "dog"]
    with pytest.raises(StageError, match=r"per_class: 3 of 9 not at least 1 images, such as class bird in train \(0\)"):
        check_data.main(Path("data"), Path("contract"))


def test_too_many_bad_files_stop_the_line_with_three_of_them():
    source = sources.folder(Path("source"))
    for n in range(5):
        Path(f"source/cat/bad{n}.jpg").write_bytes(b"")
    with pytest.raises(StageError) as caught:
        sources.run(source, max_rejected=0.1)
    assert str(caught.value).startswith("5 of 13 files are unusable, more than data.max_rejected allows")
    assert str(caught.value).count("bad") == 3 and "\n" not in str(caught.value)
    assert not Path("data").exists()


def test_no_usable_image_at_all():
    Path("source/cat").mkdir(parents=True)
    with pytest.raises(StageError, match=r"the source has no usable image; see data.source in params.yaml"):
        sources.run({"format": "folder", "path": "source"})


def crash(payload: bytes) -> None:
    os._exit(1)


def test_a_decoder_that_crashes_is_named(monkeypatch):
    source = sources.folder(Path("source"))
    monkeypatch.setattr("pipelines.images.decode_image", crash)
    with pytest.raises(StageError, match=r"a decoder crashed .* between cat/0.png and dog/7.png"):
        sources.run(source)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"format": "folder", "path": "none"}, "data.source.path: no folder 'none'"),
        ({"format": "voc", "path": "."}, "has no folder 'Annotations'"),
        ({"format": "ultralytics", "path": ".", "yaml": "none.yaml"}, "cannot be read"),
        ({"format": "ultralytics", "path": ".", "yaml": "../up.yaml"}, "leaves the folder"),
        ({"format": "coco", "path": ".", "annotations": {"all": "x.json"}, "images": {"all": "."}}, "cannot be read"),
        ({"format": "coco", "path": ".", "annotations": {"all": "x"}, "images": {"train": "."}}, "different splits"),
    ],
)
def test_sources_that_are_not_there(source, message):
    task = "classification" if source["format"] in ("folder", "ultralytics") else "detection"
    with pytest.raises(StageError, match=message):
        sources.run(source, task)


def test_prepare_is_whole_or_not_at_all():
    source = sources.folder(Path("source"))
    sources.run(source)
    before = Path("data/index.parquet").read_bytes()
    shutil.rmtree("source/cat")
    shutil.rmtree("source/dog")
    with pytest.raises(StageError):
        prepare.main(Path("data"))
    assert Path("data/index.parquet").read_bytes() == before


@pytest.mark.parametrize("name", ["\ud800.png", "a\0b.png", "..\\x.png", ""])
def test_names_in_a_coco_file_that_no_file_can_have(name):
    source = sources.coco(Path("source"))
    file = Path("source/train.json")
    found = json.loads(file.read_text())
    found["images"].append({"id": 50, "file_name": name})
    file.write_text(json.dumps(found))
    dataset = sources.run(source, "detection")
    (reason,) = sources.rejected().values()
    assert "\n" not in reason and sum(dataset.info["images"].values()) == 8
