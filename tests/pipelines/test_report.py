"""The page of a build: what it says, and that a real browser shows it on a phone, offline and on paper."""

import re

import numpy as np
import pytest

from pipelines import evaluation, pareto, report
from pipelines.data import Dataset
from pipelines.files import read_json, write_json
from pipelines.preprocess import Preprocess
from pipelines.runtimes import onnxruntime
from pipelines.stage import StageError
from tests.tiny import TARGET, verdict


@pytest.fixture
def build(project):
    """The tiny build with the outputs of its real model, and of a target that says otherwise of one image."""
    folder = project / "build"
    dataset = Dataset(folder / "data")
    prepare = Preprocess.from_dict(read_json(folder / "onnx" / "preprocess.json"))
    rows = dataset.rows("test")
    outputs = onnxruntime.load(folder / "onnx" / "pruned.onnx", 1)(np.stack([prepare(dataset.image(r)) for r in rows]))
    right = np.flatnonzero(outputs[0].argmax(1) == dataset.labels[rows])
    changed = outputs[0].copy()
    changed[right[5], (dataset.labels[rows[right[5]]] + 1) % 10] += 40
    evaluation.write_outputs(folder / "baseline" / "pruned.npz", outputs)
    evaluation.write_outputs(folder / "predictions" / f"{TARGET}.npz", [changed])
    baseline = read_json(folder / "baseline" / "metrics.json")
    slices = {f"class {n}": 1.0 for n in range(10)}
    write_json(folder / "baseline" / "metrics.json", {n: {**m, **EXTRA, "slices": slices} for n, m in baseline.items()})
    measured = read_json(folder / "metrics" / f"{TARGET}.json")
    lost = {**slices, "class 3": 0.9}
    write_json(folder / "metrics" / f"{TARGET}.json", {**measured, **EXTRA, "slices": lost})
    changed_path = str(dataset.column("path")[rows[right[5]]])
    return folder, changed_path


EXTRA = {"drop_teacher": 0.2, "drop_teacher_low": -0.4, "drop_teacher_high": 0.8, "speedup_teacher": 7.8, "p95_ms": 0.1}


def text(page: str) -> str:
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_verdict_comes_first_and_in_plain_words(build):
    said = text(report.render(build[0]))
    first = said.index("The target passed its gates.")
    assert first < said.index("12x smaller, 7.8x faster than the teacher, 0.20 points down (±0.60).")
    assert "Quantizing alone: 0.10 points down (±0.20)." in said
    assert "drop_fp32 is 0.1; at most 0.5 is wanted" in said and "≤ 0.5 points" in said


def test_what_each_stage_took_is_said_the_longest_first_and_targets_together(build):
    took = {"seconds": 75.4, "peak_memory_mb": 1200, "cores": 2}
    write_json(build[0] / "took" / "train.json", took)
    for n, target in enumerate(("a", "b")):
        write_json(build[0] / "took" / f"validate@{target}.json", {**took, "seconds": 10.1, "peak_memory_mb": 300 + n})
    said = text(report.render(build[0]))
    assert "1 min 36 s of work in all stages" in said
    assert said.index("train 1 min 15 s 1,200 MB 2") < said.index("validate × 2 20.2 s 301 MB 2")


@pytest.mark.parametrize("word", ["failed", "inconclusive"])
def test_a_target_that_did_not_pass_says_why_in_its_card(build, word):
    write_json(build[0] / "verdicts" / f"{TARGET}.json", verdict(word))
    page = report.render(build[0])
    assert f"0 of 1 targets passed; 1 {word}." in text(page)
    cards = page[: page.index("<nav>")]
    assert verdict(word)["gates"][0]["reason"] in cards and f'badge {word}">' in cards


def test_the_image_whose_label_changed_is_shown_and_no_other(build):
    page = report.render(build[0])
    assert "1 of 540 test images got another label" in text(page)
    (shot,) = page.split('<div class="shot">')[1:]
    assert build[1] in shot and 'src="data:image/png;base64,' in shot and shot.count('class="wrong"') == 1


def test_the_class_that_lost_most_comes_first(build):
    page = report.render(build[0])
    table = page[page.index("By class and brightness") :]
    assert table.index("class 3") < table.index("class 0")
    assert "-10.0" in text(table)


def test_the_same_build_gives_the_same_bytes_and_nothing_from_outside(build):
    report.main(build[0], build[0] / "report")
    first = (build[0] / "report" / "index.html").read_bytes()
    report.main(build[0], build[0] / "report")
    assert (build[0] / "report" / "index.html").read_bytes() == first
    assert not re.search(rb"""(?:src|href)=["'](?!data:|#)|@import|url\(|<script""", first)


def test_the_figures_for_dvc_are_those_of_the_page(build):
    report.main(build[0], build[0] / "report")
    found = read_json(build[0] / "report" / "variants.json")
    assert found[TARGET] == {
        "metric": 96.0, "drop": 0.2, "p50_ms": 0.05, "size_mb": 0.003, "speedup": 7.8, "verdict": "passed",
    }  # fmt: skip
    lines = (build[0] / "report" / "variants.csv").read_text().splitlines()
    assert lines[0] == "variant,metric,drop,p50_ms,size_mb,speedup,verdict"
    assert lines[-1] == f"{TARGET},96.0,0.2,0.05,0.003,7.8,passed" and len(lines) == 5


def test_names_from_the_data_cannot_become_markup(build):
    info = build[0] / "data" / "dataset.json"
    described = read_json(info)
    write_json(info, {**described, "classes": ["<script>alert(1)</script>", *described["classes"][1:]]})
    write_json(build[0] / "data" / "rejected.json", [{"path": "<img src=x>", "reason": "is <b>bad</b>"}])
    page = report.render(build[0])
    assert "<script" not in page and "<img src=x>" not in page and "&lt;img src=x&gt;" in page


def test_without_measurements_it_says_what_to_run(tmp_path):
    with pytest.raises(StageError, match="no metrics; run `dvc repro` first"):
        report.render(tmp_path)


def test_what_was_not_measured_is_said_and_not_guessed(build):
    path = build[0] / "metrics" / f"{TARGET}.json"
    unknown = dict.fromkeys(("p50_ms", "speedup", "speedup_teacher", "throughput_per_s", "compression"))
    write_json(path, {**read_json(path), **unknown, "compression": 12.0})
    said = text(report.render(build[0]))
    assert "12x smaller than the teacher, 0.20 points down" in said and "None" not in said


def test_what_was_tried_and_which_operators_are_sensitive_is_shown(build):
    path = build[0] / "targets" / TARGET / "quantize.json"
    tried = {"precision": "int8", "options": {"preset": "mixed"}, "kept": ["/a", "/b", "/c", "/d"], "drop_fp32": 0.25}
    worst, least = ({"operators": [name], "drop_fp32": 3.25, "error": 0.5} for name in ("/head/Conv", "/stem/Conv"))
    made = {"tried": [tried], "sensitivity": [worst, least], "chosen": "mixed keeps the aim", "kept": ["/head/Conv"]}
    write_json(path, made)
    page = text(report.render(build[0]))
    assert "what was tried mixed keeps the aim kept options precision drop fp32" in page
    assert "/a, /b, /c and 1 more preset: mixed int8 0.25" in page
    assert "operators, measured operators stay in drop fp32 error /head/Conv float 3.25 0.5 /stem/Conv INT8" in page


def point(name, x, y):
    return pareto.Point(name, x, y, y - 1, y + 1, "passed")


def test_the_front_holds_what_no_other_beats():
    points = [point("slow", 9, 90), point("bad", 5, 70), point("good", 5, 80), point("fast", 1, 75)]
    assert [p.name for p in pareto.front(points)] == ["fast", "good", "slow"]


@pytest.mark.parametrize("count", [1, 2, 20])
def test_labels_stay_in_the_plot_and_do_not_cover_each_other(count):
    points = [point(f"target-{n}-int8", 1.0 + 0.01 * n, 95.0) for n in range(count)]
    places = [(200.0 + n, 150.0) for n in range(count)]
    boxes = [
        (x, y - 11, x + pareto._width(p), y + 3)
        for p, (x, y) in zip(points, pareto._labels(points, places), strict=True)
    ]
    for n, box in enumerate(boxes):
        assert box[0] >= 0 and box[2] <= pareto.WIDTH and box[1] >= 0 and box[3] <= pareto.HEIGHT
        overlaps = [o for o in boxes[n + 1 :] if box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3]]
        assert not overlaps


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_on_a_phone_offline_and_prints_it(build, browser, tmp_path, scheme):
    report.main(build[0], tmp_path / "report")
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, offline=True)
    page = context.new_page()
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.goto((tmp_path / "report" / "index.html").as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [page.url] and not problems
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("h1").bounding_box()["y"] < page.locator("svg").first.bounding_box()["y"]
    assert page.locator("img").first.evaluate("image => image.complete && image.naturalWidth > 0")
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink < paper) == (scheme == "light")
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") > 1
    context.close()
