"""Turns FP32 ONNX into a flat torch graph of one image, for the converters that start from torch."""

import logging
import operator
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from pipelines.stage import StageError


def read(source: Path) -> tuple[Any, Any, list[str]]:
    """Return an ONNX model as a torch.fx graph, an image of zeros for it, 1 x C x H x W, and its outputs' names.

    The graph holds operators of torch alone, with the node of ONNX from which each comes as `meta["onnx"]`. Raises
    StageError for an operator that onnx2torch does not know.
    """
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # it finds fault with torchao's import
    import onnx2torch
    import torch
    from torch.fx.experimental import proxy_tensor

    proto = _fixed(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = onnx2torch.convert(proto).eval()
        except NotImplementedError as error:
            raise StageError(f"{source}: onnx2torch cannot turn it into torch: {error}") from error

        class Named(torch.fx.Interpreter):  # type: ignore[misc]
            """Runs the modules of onnx2torch, and writes the name of each at what it adds to the graph."""

            def run_node(self, n: Any) -> Any:
                graph = proxy_tensor.get_proxy_mode().tracer.graph
                before = len(graph.nodes)
                found = super().run_node(n)
                for new in list(graph.nodes)[before:]:
                    new.meta["onnx"] = str(n.target)
                return found

            def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
                value = super().get_attr(target, args, kwargs)
                # Shapes and scales are known while the graph is made; weights are not to be copied in it.
                return torch.ops.aten.lift_fresh_copy(value) if target in settings else value

        settings = _settings(module)
        image = torch.zeros([d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim])
        # Shapes are constants here, whatever their length: torch's own limit is one number.
        with mock.patch.object(proxy_tensor, "CONSTANT_NUMEL_LIMIT", 1 << 20), torch.no_grad():
            trace = proxy_tensor.make_fx(lambda x: Named(module).run(x), tracing_mode="real", pre_dispatch=True)
            graph = trace(image)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph, image, [output.name for output in proto.graph.output]


def _settings(module: Any) -> set[str]:
    """Return the constants of onnx2torch's graph that are no weights: integers, and how much a Resize enlarges."""
    found = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(module)
            kinds = {
                type(module.get_submodule(user.target)).__name__ for user in node.users if user.op == "call_module"
            }
            if not value.is_floating_point() or kinds == {"OnnxResize"}:
                found.add(node.target)
    return found


def _fixed(source: Path) -> Any:
    """Return an ONNX model for one image, what follows from its shapes computed, and no weight shared by name."""
    import onnx
    import onnxruntime

    proto = onnx.load(source)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "fixed.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        proto = onnx.load(options.optimized_model_filepath)
    weights = {i.name: i for i in proto.graph.initializer}
    for node in [n for n in proto.graph.node if n.op_type == "Identity" and n.input[0] in weights]:
        # onnx2torch takes weights as initializers alone.
        proto.graph.initializer.append(weights[node.input[0]])
        proto.graph.initializer[-1].name = node.output[0]
        proto.graph.node.remove(node)
    return proto
