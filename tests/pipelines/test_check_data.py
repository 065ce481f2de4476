"""The data contract: what it finds, what it says, and what it leaves for a person to open."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines import check_data, drift, params
from pipelines.data import Dataset
from pipelines.files import sha256_file, sha256_tree
from pipelines.stage import StageError
from tests.pipelines import sources

DATA, OUT = Path("data"), Path("contract")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def contract(**changes) -> None:
    """Change the contract in params.yaml."""
    found = params.read()
    found["contract"] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(found, sort_keys=False))


def results() -> dict[str, dict]:
    return {one["check"]: one for one in json.loads((OUT / "results.json").read_text())["checks"]}


def test_good_data_meets_it_twice_with_the_same_bytes():
    sources.run(sources.folder(Path("source")))
    check_data.main(DATA, OUT)
    before = sha256_tree(OUT)
    assert all(one["success"] for one in results().values())
    check_data.main(DATA, OUT)
    assert sha256_tree(OUT) == before


def test_every_expectation_is_judged():
    sources.run(sources.voc(Path("source")), "detection")
    check_data.main(DATA, OUT)
    assert set(results()) == {
        "width", "height", "channels", "bits", "brightness", "sharpness", "duplicates", "unreadable", "known_class",
        "per_class", "balance", "box_outside", "box_area",
    }  # fmt: skip
    per_class = results()["per_class"]
    assert per_class["values"] == 6 and per_class["lowest"] == 1


def test_an_error_stops_the_line_with_expectation_count_and_three_files():
    sources.run(sources.folder(Path("source")))
    contract(edge={"level": "error", "min": 28, "max": 100})
    with pytest.raises(StageError) as caught:
        check_data.main(DATA, OUT)
    text = str(caught.value)
    assert "height: 8 of 8 not 28 to 100 pixels, such as cat/0.png (24), cat/2.png (24), cat/4.png (24)" in text
    assert "width" not in text and "\n" not in text
    assert not OUT.exists()
    kept = Path(text.rpartition("see ")[2])
    assert "cat/4.png" in kept.read_text()
    contract(edge={"level": "error", "min": 4, "max": 100})
    check_data.main(DATA, OUT)
    assert not kept.exists(), "the docs of the violated contract would mislead"


def test_a_warning_is_shown_and_stops_nothing(capsys):
    sources.run(sources.folder(Path("source")))
    contract(brightness={"level": "warn", "min": 0.9, "max": 1.0})
    check_data.main(DATA, OUT)
    assert "warn: brightness: 8 of 8 not 0.9 to 1" in capsys.readouterr().out
    assert not results()["brightness"]["success"] and '<tr class="warn">' in (OUT / "docs/index.html").read_text()


def test_duplicates_across_given_splits_are_found():
    source = sources.folder(Path("source"), splits=True)
    sources.picture(Path("source/test/cat/same.png"), 0)  # the picture of train/cat/0.png
    sources.run(source)
    with pytest.raises(StageError, match=r"duplicates: 2 of 9 not in one split only, such as test/cat/same.png \(2\)"):
        check_data.main(DATA, OUT)


def test_files_left_out_are_counted_and_named():
    source = sources.folder(Path("source"))
    Path("source/cat/bad.png").write_bytes(b"")
    sources.run(source)
    wanted = r"unreadable: .* at most 0 of 9 files left out \(1 are\), such as cat/bad.png \(the file is empty"
    with pytest.raises(StageError, match=wanted):
        check_data.main(DATA, OUT)
    contract(unreadable={"level": "warn", "max": 0.0})
    check_data.main(DATA, OUT)
    assert "cat/bad.png" in (OUT / "docs/index.html").read_text()


def test_imbalance_names_the_rarest_classes():
    source = sources.folder(Path("source"), count=12)
    for n in range(20, 60):
        sources.picture(Path(f"source/dog/{n}.png"), n)
    sources.run(source)
    contract(balance={"level": "error", "max": 2.0})
    with pytest.raises(StageError, match=r"balance: 1 of 1 not at most 2 to 1 in training, such as class cat \(\d+\)"):
        check_data.main(DATA, OUT)


def test_the_docs_need_nothing_from_outside_and_escape_what_they_show():
    source = sources.folder(Path("source"))
    Path("source/cat/<script>alert(1)<").mkdir()
    Path("source/cat/<script>alert(1)</x.png").write_bytes(b"")
    sources.run(source)
    contract(unreadable={"level": "warn", "max": 0.0})
    check_data.main(DATA, OUT)
    text = (OUT / "docs/index.html").read_text()

    class Tags(HTMLParser):
        found: set[str] = set()  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found.add(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}

    Tags().feed(text)
    assert "table" in Tags.found and "script" not in Tags.found and "link" not in Tags.found
    assert not re.search(r"https?://|url\(|@import", text)


def reference(level: str = "error") -> None:
    """Take the prepared data as the reference of those that come."""
    Path("data/index.parquet").rename("reference.parquet")
    bound = {"level": level, "max": 0.2}
    drifting = {
        "reference": "reference.parquet", "sha256": sha256_file(Path("reference.parquet")), "ks": bound, "psi": bound,
    }  # fmt: skip
    sources.CONTRACT["drift"] = drifting


@pytest.fixture
def with_drift(monkeypatch):
    monkeypatch.setitem(sources.CONTRACT, "drift", None)  # set back afterwards


def test_drift_names_the_statistic_of_each_column(with_drift):
    sources.run(sources.folder(Path("source"), count=40))
    reference()
    sources.run({"format": "folder", "path": "source"}, out="same")
    check_data.main(Path("same"), OUT)
    found = {
        one["column"]: (one["statistic"], one["value"])
        for one in json.loads((OUT / "results.json").read_text())["drift"]
    }
    assert found["class"] == ("psi", 0.0) and found["brightness"] == ("ks", 0.0)
    assert len(found) == 4 + 3 + 3 + 1

    for n in range(40):  # darker, and more dogs than cats
        file = sources.picture(Path(f"new/{'dog' if n % 4 else 'cat'}/{n}.png"), n)
        Image.fromarray(sources.pixels(n) // 2).save(file)
    sources.run({"format": "folder", "path": "new"}, out="other")
    with pytest.raises(StageError) as caught:
        check_data.main(Path("other"), OUT)
    text = str(caught.value)
    assert "drift_ks: 8 of 10 not KS of at most 0.2 against the reference, such as brightness (1)" in text
    assert "drift_psi: 1 of 1 not PSI of at most 0.2 against the reference, such as class (0.2747)" in text


def test_drift_of_boxes(with_drift):
    sources.run(sources.voc(Path("source")), "detection")
    reference()
    dataset = sources.run({"format": "voc", "path": "source"}, "detection", out="same")
    check_data.main(Path("same"), OUT)
    columns = {one["column"] for one in json.loads((OUT / "results.json").read_text())["drift"]}
    assert {"box area", "boxes per image", "class"} <= columns and dataset.info["images"]["train"] == 4


def test_a_reference_that_is_missing_another_or_no_index(with_drift):
    sources.run(sources.folder(Path("source")))
    reference()
    sources.run({"format": "folder", "path": "source"})
    declared = sources.CONTRACT["drift"]
    contract(drift={**declared, "reference": "none.parquet"})
    with pytest.raises(StageError, match=r"contract.drift.reference: no file 'none.parquet'; fetch it"):
        check_data.main(DATA, OUT)
    contract(drift={**declared, "sha256": "0" * 64})
    with pytest.raises(StageError, match=r"contract.drift.sha256: 'reference.parquet' has [0-9a-f]{64}; write that"):
        check_data.main(DATA, OUT)
    Path("reference.parquet").write_text("no Parquet")
    contract(drift={**declared, "sha256": sha256_file(Path("reference.parquet"))})
    with pytest.raises(StageError, match=r"contract.drift.reference: 'reference.parquet' is not Parquet"):
        check_data.main(DATA, OUT)


def test_statistics_against_values_worked_out_by_hand():
    assert drift.psi({"a": 50, "b": 50}, {"a": 75, "b": 25}) == pytest.approx(0.25 * np.log(1.5) - 0.25 * np.log(0.5))
    assert drift.psi({"a": 1}, {"a": 1, "b": 0}) == 0
    assert np.isfinite(drift.psi({"a": 1}, {"b": 1}))
    assert drift.ks(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])) == 0.5
    assert drift.ks(np.zeros(0), np.zeros(3)) == 1 and drift.ks(np.zeros(0), np.zeros(0)) == 0


def test_counts_of_classes_are_of_images_not_of_boxes():
    source = sources.voc(Path("source"))
    file = Path("source/Annotations/0.xml")
    text = file.read_text()
    one = text[text.index("<object>") : text.index("</object>") + 9]
    file.write_text(text.replace(one, one * 3))
    dataset = sources.run(source, "detection")
    assert check_data.count(dataset).tolist() == [[2, 2], [1, 1], [1, 1]]
    assert isinstance(dataset, Dataset)
