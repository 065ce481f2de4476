"""Tells MLflow what the line made: a run and a logged model per variant, a model version per bundle."""

import subprocess
import time
from pathlib import Path
from typing import Any

from pipelines import card
from pipelines.files import read_json, sha256_file, write_json
from pipelines.params import value
from pipelines.stage import UnansweredError, run
from registry import tracking, variants
from registry.variants import Variant

PATIENCE = 60.0  # seconds after which a slow server is left alone; `quantmill sync` does the rest
CANDIDATE = "candidate"
TAG = "quantmill"
SHOWN = ("accuracy", "mAP50-95", "drop_teacher", "drop_fp32", "compression", "speedup", "p50_ms", "size_bytes")


def main(build: Path, out: Path) -> None:
    """Log every variant of the folder `build` into MLflow, and write `out`, which holds names and hashes alone.

    A server that is down or slow costs one line on standard output, never the result.
    """
    found = variants.read(build)
    write_json(out, summary(found))
    try:
        print(sync(found))
    except UnansweredError as error:
        print(error)


def summary(found: list[Variant]) -> dict[str, Any]:
    """Return what was registered, without anything that MLflow chose: names, hashes and verdicts."""
    project = value("project")
    return {
        "project": project,
        "models": {
            f"{project}.{v.name}": {"artifact": v.content_hash, "bundle": v.bundle_hash, "verdict": v.verdict}
            for v in found
            if v.bundle
        },
        "variants": {v.name: v.content_hash for v in found if v.onnx},
    }


def sync(found: list[Variant], patience: float = PATIENCE) -> str:
    """Log what MLflow lacks, and return one line that says what was done.

    Raises UnansweredError, which says that nothing is lost, when the server is down, fails, or is slower than
    `patience`, in seconds.
    """
    later = "the results are safe; `quantmill sync` logs them later"
    if not tracking.reachable():
        raise UnansweredError(f"register: MLflow at {tracking.uri()} does not answer; {later}")
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    end = time.monotonic() + patience
    new = 0
    try:
        with tracking.alone("register"):
            client = tracking.client()
            experiment = tracking.experiment(client, value("project"))
            known = _known(client, experiment)
            for variant in found:
                if time.monotonic() > end:
                    raise UnansweredError(
                        f"register: MLflow at {tracking.uri()} is slow, {new} variants logged; {later}"
                    )
                if variant.record not in known:
                    known[variant.record] = (*_log(client, experiment, variant), variant.measured, "")
                    new += 1
                run_id, model_id, measured, report = known[variant.record]
                if measured != variant.measured:
                    _log_metrics(client, run_id, model_id, variant)
                if variant.report and report != (page := sha256_file(variant.report)):
                    client.log_artifact(run_id, str(variant.report), "report")
                    for picture in variant.pictures:  # the page holds them, so its hash is theirs too
                        client.log_artifact(run_id, str(picture), "pictures")
                    client.set_tag(run_id, f"{TAG}.report", page)
                if variant.bundle:
                    _version(client, variant, (run_id, model_id))
    except (MlflowException, RequestException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnansweredError(f"register: MLflow at {tracking.uri()} failed ({reason}); {later}") from None
    return f"register: {new} of {len(found)} variants were new to MLflow"


def _known(client: Any, experiment: str) -> dict[str, tuple[str, str, str, str]]:
    """Return record -> run id, logged model id, hashes of metrics and report; delete what an interrupted run left."""
    known: dict[str, tuple[str, str, str, str]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{TAG}.record` != ''", page_token=token)
        for found in page:
            tags = found.data.tags
            if found.info.status == "FINISHED" and f"{TAG}.model" in tags:
                hashes = (tags.get(f"{TAG}.{name}", "") for name in ("measured", "report"))
                known[tags[f"{TAG}.record"]] = (found.info.run_id, tags[f"{TAG}.model"], *hashes)
            else:
                client.delete_run(found.info.run_id)
        token = page.token
        if not token:
            return known


def _log(client: Any, experiment: str, variant: Variant) -> tuple[str, str]:
    """Log one variant as a run with a logged model; return their ids. The run is finished only when all is there."""
    import mlflow
    from mlflow.entities import DatasetInput, Metric, Param, RunTag

    tags = _tags(variant)
    created = client.create_run(experiment, run_name=variant.name, tags=tags)
    run_id = created.info.run_id
    with mlflow.start_run(run_id=run_id):
        model_id = _log_model(variant)
    client.set_logged_model_tags(model_id, tags)
    client.log_inputs(run_id, [DatasetInput(_dataset(variant), [])])
    _log_metrics(client, run_id, model_id, variant)
    now = int(time.time() * 1000)
    curves = [
        Metric(key, float(number), now, int(row["epoch"]), model_id, run_id=run_id)
        for row in variant.curves
        for key, number in row.items()
        if key != "epoch" and _is_number(number)
    ]
    for start in range(0, len(curves), 900):
        client.log_batch(run_id, curves[start : start + 900])
    parameters = [Param(k, v[:6000]) for k, v in sorted(variant.params.items())]
    for start in range(0, len(parameters), 100):
        client.log_batch(run_id, params=parameters[start : start + 100])
    for plot in variant.plots:
        client.log_artifact(run_id, str(plot), "plots")
    if variant.tried:
        # A table, so that the runs page shows it: one column for each key, one row for each scheme.
        table = {k: [row[k] for row in variant.tried] for k in variant.tried[0]}
        client.log_table(run_id, table, "search.json")
    client.log_batch(run_id, tags=[RunTag(f"{TAG}.model", model_id)])
    client.set_terminated(run_id, "FINISHED")
    return run_id, model_id


def _log_metrics(client: Any, run_id: str, model_id: str, variant: Variant) -> None:
    """Log the metrics for the run, the model and the dataset together; measured anew, they take the next step."""
    from mlflow.entities import Metric, RunTag

    dataset, now = _dataset(variant), int(time.time() * 1000)
    first = next(iter(variant.metrics), None)
    step = len(client.get_metric_history(run_id, first)) if first else 0
    metrics = [
        Metric(k, v, now, step, model_id, dataset.name, dataset.digest, run_id) for k, v in variant.metrics.items()
    ]
    client.log_batch(run_id, metrics, tags=[RunTag(f"{TAG}.measured", variant.measured)])


def _dataset(variant: Variant) -> Any:
    from mlflow.entities import Dataset

    return Dataset(value("project"), variant.data_hash[:16], "local", '{"uri": "build/data"}')


def _predictions(task: str) -> Any:
    """Return the schema of what the bundles of a task say of an image."""
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    said = {"label": "string", "class": "long", "score": "double"}
    if task == "classification":
        return Schema([ColSpec(kind, name) for name, kind in said.items()])
    said |= dict.fromkeys(("x", "y", "width", "height"), "double")
    return Schema([ColSpec(Array(Object([Property(name, kind) for name, kind in said.items()])), "objects")])


def _log_model(variant: Variant) -> str:
    """Log the model itself, with its signature and requirements given, so that MLflow need not try to find them."""
    import warnings

    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    if variant.bundle:
        evidence = read_json(variant.bundle / "evidence.json")
        signature = ModelSignature(
            inputs=Schema([ColSpec("binary", "image")]),
            outputs=_predictions(evidence["task"]),
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*input example")
            info = mlflow.pyfunc.log_model(
                name=variant.name,
                loader_module="registry.pyfunc",
                data_path=str(variant.bundle),
                signature=signature,
                pip_requirements=["quantmill", *(f"{n}=={v}" for n, v in evidence["packages"].items())],
            )
    else:
        import numpy as np
        import onnx

        assert variant.onnx is not None
        proto = onnx.load(variant.onnx)
        signature = ModelSignature(
            *(
                Schema([TensorSpec(np.dtype(np.float32), _shape(tensor), tensor.name) for tensor in tensors])
                for tensors in (proto.graph.input, proto.graph.output)
            )
        )
        info = mlflow.onnx.log_model(
            proto,
            name=variant.name,
            signature=signature,
            save_as_external_data=False,  # external data empties the model that is passed in
            pip_requirements=[f"{n}=={v}" for n, v in card.packages(("onnx", "onnxruntime")).items()],
        )
    return str(info.model_id)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(d.dim_value or -1 for d in tensor.type.tensor_type.shape.dim)


def _version(client: Any, variant: Variant, ids: tuple[str, str]) -> None:
    """Make the model version of a bundle unless it is there, and keep `candidate` on the newest that passed."""
    from mlflow.exceptions import MlflowException

    run_id, model_id = ids
    project = value("project")
    name = f"{project}.{variant.name}"
    try:
        client.create_registered_model(name, {TAG: project}, f"{project} for {variant.name}")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name='{name}'", max_results=1000)
    if not any(v.tags.get(f"{TAG}.bundle") == variant.bundle_hash for v in versions):
        assert variant.bundle is not None
        shown = {k: f"{variant.metrics[k]:.6g}" for k in SHOWN if k in variant.metrics}
        made = client.create_model_version(
            name,
            f"models:/{model_id}",
            run_id,
            tags={**_tags(variant), **shown},
            description=describe(read_json(variant.bundle / "evidence.json")),
            model_id=model_id,
        )
        versions = [*versions, made]
    passed = [int(v.version) for v in versions if v.tags.get(f"{TAG}.verdict") == "passed"]
    aliases = client.get_registered_model(name).aliases
    if passed and int(aliases.get(CANDIDATE, 0)) != max(passed):
        client.set_registered_model_alias(name, CANDIDATE, str(max(passed)))


def describe(evidence: dict[str, Any]) -> str:
    """Return the description of a version, Markdown: verdict, gates and numbers."""
    lines = [
        f"**{evidence['verdict']['verdict']}**: {evidence['precision']} for {evidence['runtime']} "
        f"on {evidence['device']}",
        "",
        *[f"- {line}" for line in card.gates(evidence["verdict"])],
        "",
        "| | |",
        "| --- | --- |",
        *[f"| {name} | {text} |" for name, text in card.numbers(evidence["metrics"])],
    ]
    return "\n".join(lines)


def _tags(variant: Variant) -> dict[str, str]:
    tags = {
        f"{TAG}.record": variant.record,
        f"{TAG}.content_hash": variant.content_hash,
        f"{TAG}.data_hash": variant.data_hash,
        f"{TAG}.stage": variant.stage,
        f"{TAG}.files": " ".join(variant.files),
    }
    if variant.bundle:
        tags |= {
            f"{TAG}.target": variant.name,
            f"{TAG}.bundle": str(variant.bundle_hash),
            f"{TAG}.verdict": str(variant.verdict),
        }
    if commit := _git("rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        tags[f"{TAG}.git_commit"] = f"{commit}-dirty" if _git("status", "--porcelain") else commit
    return tags


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    run(main)
