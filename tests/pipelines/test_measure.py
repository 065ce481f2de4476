"""The harness: another process, interleaved, and honest about what it cannot measure."""

import numpy as np
import pytest

from pipelines import harness, measure, runtimes
from pipelines.evaluation import int8_share, latency
from tests.pipelines.test_runtimes import EVERY, make, project  # noqa: F401 - project is a fixture

OPTIONS = {"threads": 1, "warmup": 2, "runs": 20, "batch": 4}
SHAPE = [1, 16, 16]


@pytest.fixture(scope="module")
def artifact(project):  # noqa: F811
    return project / "build/onnx/pruned.onnx"


def test_every_artifact_is_run_as_often_as_asked(artifact):
    times = measure.interleaved("onnxruntime", {"one": artifact, "two": artifact}, SHAPE, OPTIONS, "cpu")["times_ms"]
    assert {name: len(found) for name, found in times.items()} == {"one": 20, "two": 20}
    found = latency(times["one"])
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]


def test_alone_measures_load_memory_throughput_and_no_invented_energy(artifact):
    found = measure.alone("onnxruntime", artifact, SHAPE, OPTIONS, "cpu")
    assert set(found) == {"load_ms", "peak_memory_mb", "energy_mj", "throughput_per_s"}
    assert found["load_ms"] > 0 and found["throughput_per_s"] > 0 and found["peak_memory_mb"] > 20
    assert (found["energy_mj"] is None) == (not harness.ENERGY.is_file()) or found["energy_mj"] is None


def test_peak_memory_is_that_of_the_measuring_process_alone(artifact):
    ballast = np.ones(80_000_000)  # 640 MB in the process that asks
    found = measure.alone("onnxruntime", artifact, SHAPE, OPTIONS, "cpu")
    assert found["peak_memory_mb"] < ballast.nbytes / 2**20 / 2


def test_a_broken_artifact_is_an_error_with_its_reason(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="the measuring process failed"):
        measure.alone("onnxruntime", tmp_path / "model.onnx", SHAPE, OPTIONS, "cpu")


@pytest.mark.parametrize(("name", "precision"), [(n, p) for n, p in EVERY if not runtimes.load(n).INSTEAD])
def test_the_meter_tells_int8_from_float_and_counts_the_same_everywhere(project, tmp_path, name, precision):  # noqa: F811
    runtime, *_ = make(project, name, precision, tmp_path)
    found = runtime.operators(tmp_path / runtime.FILES[0], SHAPE)
    share = int8_share(found)
    assert share > 0.9 if precision == "int8" else share == 0
    assert sum(o.multiply_adds for o in found) == multiply_adds(project / "build/onnx/pruned.onnx")


def test_no_multiply_adds_have_no_share():
    assert int8_share([]) is None
    kinds = [runtimes.Operator(n, "Conv", p, 10) for n, p in (("a", "int8"), ("b", "float"), ("c", "int8"))]
    assert int8_share(kinds) == pytest.approx(2 / 3)


def multiply_adds(path):
    """Count them by hand, from the shapes that ONNX infers."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    sizes = {i.name: list(i.dims) for i in graph.initializer}
    shapes = {
        v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output]
    }
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            total += int(np.prod(shapes[node.output[0]]) * np.prod(sizes[node.input[1]][1:]))
        elif node.op_type == "Gemm":
            total += int(np.prod(sizes[node.input[1]]))
    return total
