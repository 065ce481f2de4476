"""The whole of params.yaml, checked before anything runs."""

import json
from pathlib import Path

import pytest
import yaml

from pipelines import check, params, runtimes
from pipelines.files import to_json

ROOT = Path(__file__).parent.parent.parent
PARAMS = params.read(ROOT / "params.yaml")


def mistakes(tmp_path, change) -> list[str]:
    value = json.loads(json.dumps(PARAMS))
    change(value)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(value))
    return check.check(file)


def test_the_file_in_the_repository_is_right():
    assert check.check(ROOT / "params.yaml") == []


def test_the_committed_schema_is_that_of_the_sections():
    text = to_json(json.loads(json.dumps(check.schema())))
    assert (ROOT / "params.schema.json").read_text() == text, "run `make schema`"


@pytest.mark.parametrize("file", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("examples/*/params.yaml")))
def test_the_examples_hold(file):
    if file == "examples/yolo/params.yaml":
        pytest.importorskip("ultralytics", reason="pip install -e '.[yolo]'")
    assert check.check(ROOT / file) == []


def test_the_schema_takes_the_file_and_refuses_a_typo():
    from jsonschema import ValidationError, validate

    schema = json.loads((ROOT / "params.schema.json").read_text())
    validate(PARAMS, schema)
    with pytest.raises(ValidationError):
        validate({**PARAMS, "prunes": {}}, schema)
    with pytest.raises(ValidationError):
        validate({**PARAMS, "teacher": {**PARAMS["teacher"], "width": 1}}, schema)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(sed=1), "sed: unknown key; did you mean 'seed'?"),
        (lambda p: p.pop("seed"), "seed: missing"),
        (lambda p: p.update(task="detect"), "task: no such task 'detect'"),
        (lambda p: p["data"]["source"].update(format="zip"), "data.source.format: no such format 'zip'; have: "),
        (lambda p: p["data"]["source"].update(size=1), "data.source.size: should be greater than or equal to 8"),
        (lambda p: p["teacher"].update(family="vit"), "teacher.family: no such family 'vit'"),
        (lambda p: p["student"].update(widths=[8]), "student: 1 widths but 2 depths; give one of each per stage"),
        (lambda p: p["prune"].update(ratio=1.5), "prune.ratio: should be less than 1 (is 1.5)"),
        (
            lambda p: p["targets"]["openvino-int8"].update(runtime="npu"),
            "targets.openvino-int8.runtime: no such runtime 'npu'; have: ",
        ),
        (
            lambda p: p["targets"]["openvino-int8"].update(precision="int4"),
            "targets.openvino-int8.precision: should be 'fp32', 'fp16' or 'int8' (is \"int4\")",
        ),
        (
            lambda p: p["targets"]["openvino-int8"]["options"].update(presett="mixed"),
            "targets.openvino-int8.options.presett: unknown key; did you mean 'preset'?",
        ),
        (
            lambda p: p["targets"]["openvino-int8"]["gates"].update(acuracy={"min": 0.9}),
            "targets.openvino-int8.gates.acuracy: no such metric; have: accuracy, agreement",
        ),
        (
            lambda p: p["targets"]["openvino-int8"]["gates"].update(accuracy={}),
            "targets.openvino-int8.gates.accuracy: bounds nothing; give it a min or a max",
        ),
        (
            lambda p: p["targets"]["openvino-int8"].update(search="fast"),
            "targets.openvino-int8.aim: a search needs one, such as {drop_fp32: {max: 0.5}}",
        ),
        (
            lambda p: p["targets"]["openvino-int8"].update(aim={"drop_fp32": {"max": 0.5}}),
            "targets.openvino-int8.aim: no search; write {}",
        ),
        (
            lambda p: p["targets"]["openvino-int8"].update(search="fast", aim={"accuracy": {"min": 0.5}}),
            "targets.openvino-int8.aim.accuracy: no search measures it; have: agreement, drop_fp32",
        ),
        (
            lambda p: p["targets"]["openvino-fp16"].update(search="fast", aim={"drop_fp32": {"max": 0.5}}),
            "targets.openvino-fp16.search: fp16 has one scheme; write none",
        ),
    ],
)
def test_each_mistake_is_one_line_with_file_key_and_fix(tmp_path, change, message):
    found = mistakes(tmp_path, change)
    assert len(found) == 1 and message in found[0] and "params.yaml: " in found[0]


def test_all_mistakes_are_told_at_once(tmp_path):
    def change(value):
        value["teacher"]["family"] = "vit"
        value["targets"]["openvino-int8"]["runtime"] = "npu"

    assert len(mistakes(tmp_path, change)) == 2


def test_a_runtime_that_is_not_installed_is_told_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtimes.load("openvino"), "PACKAGES", ("openvino", "not_there"))
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(PARAMS))
    check.main(file, tmp_path / "check.json")
    assert [line for line in capsys.readouterr().out.splitlines() if "openvino-int8" in line] == [
        "check: target openvino-int8 is left out: openvino needs not_there, not installed here; run `make targets`, "
        "then `dvc repro -f quantize@openvino-int8`"
    ]
