"""Registering: once per content, whatever the server does."""

import json
import time
from pathlib import Path

import pytest

from pipelines.files import write_json
from pipelines.stage import UnansweredError
from registry import register, tracking, variants
from tests.tiny import MODEL, TARGET, export


def test_registers_each_variant_and_version_once(project):
    build = project / "build"
    start = time.monotonic()
    register.main(build, build / "register.json")
    print("seconds", time.monotonic() - start)
    client = tracking.client()
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = {r.info.run_name: r for r in client.search_runs([experiment])}
    assert set(runs) == {"teacher", "student", "pruned", TARGET}
    assert runs["teacher"].data.metrics["val_accuracy"] == 0.96
    assert [m.value for m in client.get_metric_history(runs["teacher"].info.run_id, "loss")] == [2.1, 0.4]
    run = runs[TARGET]
    models = client.search_logged_models([experiment])
    assert {m.name for m in models} == set(runs)
    model = next(m for m in models if m.name == TARGET)
    measured = {m.key: m for m in model.metrics}
    assert measured["accuracy"].value == 0.96 and measured["accuracy"].dataset_name == "tiny"
    assert run.inputs.dataset_inputs[0].dataset.digest == variants.read(build)[0].data_hash[:16]
    version = client.get_model_version_by_alias(MODEL, "candidate")
    assert version.tags["quantmill.verdict"] == "passed" and "**passed**" in version.description
    assert register.sync(variants.read(build)) == "register: 0 of 4 variants were new to MLflow"
    assert len(client.search_runs([experiment])) == 4 and len(client.search_model_versions(f"name='{MODEL}'")) == 1


def test_what_a_search_tried_is_a_table_of_the_run(project):
    build = project / "build"
    row = {"precision": "int8", "options": {"a": 1}, "kept": ["x", "y"], "drop_fp32": 0.5, "speedup": 1.5}
    write_json(build / "targets" / TARGET / "quantize.json", {"tried": [row, {**row, "speedup": 2.0}]})
    export(project)
    register.main(build, build / "register.json")
    client = tracking.client()
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id], f"run_name = '{TARGET}'")
    table = client.load_table(run.info.experiment_id, "search.json", [run.info.run_id])
    assert table["speedup"].tolist() == [1.5, 2.0]
    assert set(table["options"]) == {"a=1"} and set(table["kept"]) == {"x y"}


def test_another_verdict_is_another_version_and_candidate_stays(project):
    build = project / "build"
    register.main(build, build / "register.json")
    export(project, verdict="failed")
    register.main(build, build / "register.json")
    client = tracking.client()
    assert len(client.search_model_versions(f"name='{MODEL}'")) == 2
    assert client.get_model_version_by_alias(MODEL, "candidate").version == 1
    export(project, verdict="passed", metrics={"accuracy": 0.97})
    register.main(build, build / "register.json")
    assert client.get_model_version_by_alias(MODEL, "candidate").version == 3


def test_the_output_holds_nothing_that_mlflow_chose(project):
    build = project / "build"
    register.main(build, build / "one.json")
    tracking.client().delete_registered_model(MODEL)
    register.main(build, build / "two.json")
    assert (build / "one.json").read_bytes() == (build / "two.json").read_bytes()
    assert json.loads((build / "one.json").read_text())["models"][MODEL]["verdict"] == "passed"


def test_a_server_that_is_down_costs_one_line(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    register.main(project / "build", project / "build" / "register.json")
    out = capsys.readouterr().out
    assert "does not answer" in out and "quantmill sync" in out
    assert (project / "build" / "register.json").is_file()


def test_an_interrupted_run_is_done_again_and_only_once(project, monkeypatch):
    build = project / "build"
    found = variants.read(build)
    client = tracking.client()
    real, calls = type(client).log_inputs, []

    def fail(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the wire was cut")
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(client), "log_inputs", fail)
    with pytest.raises(UnansweredError, match="the wire was cut"):
        register.sync(found)
    assert register.sync(found) == "register: 2 of 4 variants were new to MLflow"
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = client.search_runs([experiment])
    assert sorted(r.info.run_name for r in runs) == sorted(v.name for v in found)
    assert {r.info.status for r in runs} == {"FINISHED"}


def test_weights_that_are_measured_anew_or_whose_gates_change_keep_their_run(project):
    from pipelines.files import read_json, write_json

    build = project / "build"
    register.main(build, build / "register.json")
    metrics = read_json(build / "baseline" / "metrics.json")
    write_json(build / "baseline" / "metrics.json", {n: {**m, "p50_ms": 0.07} for n, m in metrics.items()})
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("max: 0.5", "max: 0.6").replace("golden: 32", "golden: 31"))
    assert register.sync(variants.read(build)) == "register: 0 of 4 variants were new to MLflow"
    client = tracking.client()
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = {r.info.run_name: r for r in client.search_runs([experiment])}
    assert len(runs) == 4 and runs["teacher"].data.metrics["p50_ms"] == 0.07
    assert [m.value for m in client.get_metric_history(runs["teacher"].info.run_id, "p50_ms")] == [0.05, 0.07]


def test_the_report_of_the_build_is_an_artifact_of_its_runs_once(project, monkeypatch):
    build = project / "build"
    (build / "report").mkdir()
    (build / "report" / "index.html").write_text("<!doctype html><title>one</title>")
    register.main(build, build / "register.json")
    client = tracking.client()
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = [r.info.run_id for r in client.search_runs([experiment])]
    assert [[f.path for f in client.list_artifacts(run, "report")] for run in runs] == [["report/index.html"]] * 4
    with monkeypatch.context() as patch:
        patch.setattr(type(client), "log_artifact", lambda *_: pytest.fail("logged again"))
        register.sync(variants.read(build))
    (build / "report" / "index.html").write_text("<!doctype html><title>two</title>")
    register.sync(variants.read(build))
    assert "two" in Path(client.download_artifacts(runs[0], "report/index.html")).read_text()
