"""A target whose runtime this machine lacks: told, left out, and no hindrance to the others."""

import json

from pipelines import export, judge, quantize, runtimes, summary, validate
from registry import variants
from tests.tiny import TARGET


def test_a_target_that_cannot_be_built_here_goes_through_the_line_as_such(project, monkeypatch, capsys):
    monkeypatch.setattr(runtimes.load("onnxruntime"), "PACKAGES", ("onnxruntime", "not_there"))
    build = project / "build"
    data, onnx, frozen, made = build / "data", build / "onnx", build / "calibration", build / "targets" / TARGET
    metrics, verdict, bundle = build / f"metrics/{TARGET}.json", build / f"verdicts/{TARGET}.json", build / "bundles"
    quantize.main(TARGET, data, onnx, frozen, made)
    assert [p.name for p in made.iterdir()] == ["quantize.json"]
    validate.main(TARGET, data, onnx, build / "baseline", frozen, made, metrics, build / "predictions.npz")
    judge.main(TARGET, metrics, verdict)
    found = json.loads(verdict.read_text())
    assert found["verdict"] == "inconclusive" and "could not be measured" in found["gates"][0]["reason"]
    assert found["note"].startswith("onnxruntime needs not_there, not installed here; run `make targets`")
    export.main(TARGET, made, metrics, verdict, onnx, data, frozen, bundle / TARGET)
    assert [p.name for p in (bundle / TARGET).iterdir()] == ["NOT_BUILT.txt"]
    assert [v.name for v in variants.read(build)] == ["teacher", "student", "pruned"], "the rest is registered"
    assert {n for n, *_ in summary.variants(build)} == {"teacher-fp32", "student-fp32", "pruned-fp32"}
    assert f"{TARGET}: left out: onnxruntime needs not_there" in capsys.readouterr().out
