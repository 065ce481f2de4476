"""Takes a finished FP32 ONNX file into the line, in the place of the converted models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import Dataset, Input
from pipelines.ends import Ends, before, classifier, detector
from pipelines.files import write_file, write_json
from pipelines.models.onnx import INPUT, OPSET, OUTPUT, Options
from pipelines.params import parse, section, value
from pipelines.stage import StageError, run

LEAST_OPSET = 13  # per-channel QuantizeLinear; older files are brought to OPSET
TOLERANCE = 1e-3  # of the largest output, between an image alone and in a batch
LEAST_SCORE = 0.001  # of an object that counts


def main(model: Path, data: Path, out: Path) -> None:
    """Write `out`: `pruned.onnx`, from which targets are made, `preprocess.json` and `model.json`.

    The file becomes what `convert` writes: input `images`, float32 N x C x H x W, and output `outputs`, logits
    N x classes in the order of the data's classes; N is dynamic. A detector gives `scores`, logits N x classes x A for
    A candidates, and `boxes`, N x 4 x A: left, top, right and bottom as shares of the input's edges. Raises StageError
    when it cannot.
    """
    declared = dict(value("student"))
    declared.pop("family", None)
    options = parse(declared, Options, "student")
    dataset = Dataset(data)
    size = section("input", Input)
    if size.mean is None:
        raise StageError("params.yaml: input.mean: missing; give mean and std with which the model was trained")
    preprocess = dataset.preprocess(size)
    shape = (preprocess.channels, preprocess.height, preprocess.width)
    proto = adopted(read(model), options, dataset.classes, shape, model.name)
    with write_file(out / "pruned.onnx") as part:
        part.write_bytes(proto.SerializeToString(deterministic=True))
        check(part, shape, len(dataset.classes), model.name, detects=options.boxes is not None)
    write_json(out / "preprocess.json", preprocess.to_dict())
    found = {"task": value("task"), "classes": dataset.classes, "channels": shape[0]}
    if options.boxes:
        found["postprocess"] = {"least": LEAST_SCORE, "overlap": options.boxes.overlap}
    write_json(out / "model.json", found)


def read(path: Path) -> Any:
    """Return the model of an ONNX file whose weights lie in it.

    Raises StageError when it is none, is quantized already, or needs another file or operators that are not ONNX's.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path, load_external_data=False)  # its paths are not to be trusted
        outside = [t.name for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        if outside:
            raise StageError(f"{path}: {len(outside)} weights lie in another file; save it as one file")
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        onnx.checker.check_model(proto, full_check=True)
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; see student.path in params.yaml") from None
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"{path}: not a valid ONNX file: {' '.join(str(error).split())[:200]}") from None
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in proto.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign:
        raise StageError(
            f"{path}: has operators that are not ONNX's ({', '.join(foreign[:5])}); export it without them"
        )
    if any(n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for n in proto.graph.node):
        raise StageError(f"{path}: is quantized already; give the FP32 model")
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if not LEAST_OPSET <= opset <= OPSET:
        try:
            proto = onnx.version_converter.convert_version(proto, OPSET)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise StageError(
                f"{path}: opset {opset} does not convert: {reason}; export it with opset {OPSET}"
            ) from None
    return proto


def adopted(proto: Any, options: Options, classes: list[str], shape: tuple[int, ...], name: str) -> Any:
    """Return the model in the form of the line: its names, axes, order of channels and classes, logits, any batch."""
    from onnx import TensorProto, helper

    graph = proto.graph
    given = _input(graph, name)
    wanted = (shape[1], shape[2], shape[0]) if options.layout == "nhwc" else shape
    dims = [d.dim_value for d in given.type.tensor_type.shape.dim]
    if given.type.tensor_type.elem_type != TensorProto.FLOAT or len(dims) != 4:
        raise StageError(f"{name}: input {given.name!r} is no float32 array of 4 axes; export it so")
    if any(has and has != want for has, want in zip(dims[1:], wanted, strict=True)):
        raise StageError(
            f"{name}: takes {' x '.join(map(str, dims[1:]))} ({options.layout}), not {' x '.join(map(str, wanted))}; "
            "set input, student.layout or data.channels in params.yaml to it"
        )
    chosen = _output(graph, options, name)
    ends, edges = Ends(), (shape[1], shape[2])
    if options.boxes:
        tensors = chosen, _known(graph, options.boxes.output or chosen, "student.boxes.output", name)
        _selected(graph, tensors, name)
        shapes = _shapes(proto, given.name, wanted, tensors, name)
        _rename(graph)
        named = f"given/{tensors[0]}", f"given/{tensors[1]}"
        before(ends, options, given.name)
        detector(ends, graph, options, named, {f"given/{k}": v for k, v in shapes.items()}, edges, classes, name)
    else:
        _rename(graph)
        before(ends, options, given.name)
        classifier(ends, graph, options, f"given/{chosen}", classes)
    outputs = ends.outputs
    kept = _needed([*ends.first, *graph.node, *ends.last], [*outputs])
    weights = {n for node in kept for n in node.input}
    made = helper.make_graph(
        kept,
        "model",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *dims]) for n, dims in outputs.items()],
        [t for t in (*graph.initializer, *ends.constants) if t.name in weights],
    )
    for node in made.node:
        node.doc_string = ""
    return helper.make_model(made, opset_imports=[o for o in proto.opset_import if o.domain in ("", "ai.onnx")],
                             ir_version=min(proto.ir_version, 10))  # fmt: skip


def _input(graph: Any, name: str) -> Any:
    weights = {t.name for t in graph.initializer}
    found = [i for i in graph.input if i.name not in weights]
    if len(found) != 1:
        raise StageError(
            f"{name}: has {len(found)} inputs ({', '.join(i.name for i in found)}); one is taken, the image"
        )
    return found[0]


def _output(graph: Any, options: Options, name: str) -> str:
    names = [o.name for o in graph.output]
    if options.output is None and len(names) > 1:
        raise StageError(f"params.yaml: student.output: {name} has {', '.join(names)}; name one")
    return _known(graph, options.output or names[0], "student.output", name)


def _known(graph: Any, tensor: str, key: str, name: str) -> str:
    """Return a tensor's name. Raises StageError when no operator makes it."""
    if not any(tensor in node.output for node in graph.node):
        names = ", ".join(o.name for o in graph.output)
        raise StageError(f"params.yaml: {key}: {name} has no {tensor!r}; its outputs: {names}")
    return tensor


def _selected(graph: Any, tensors: tuple[str, str], name: str) -> None:
    """Raise StageError when tensors are of objects that the model has chosen, not of candidates."""
    makers = {output: node for node in graph.node for output in node.output}
    ends = [makers[t] for t in tensors]
    classes = [makers[i].op_type for end in ends if end.op_type == "Concat" for i in end.input if i in makers]
    chosen = {n.op_type for n in _needed(list(graph.node), [*tensors])} & {"NonMaxSuppression"}
    if chosen or "Cast" in classes:
        raise StageError(
            f"{name}: {tensors[0]} is of objects that the model itself has chosen; name tensors before that as "
            "student.output and student.boxes.output, or export it without NMS and not end to end"
        )


def _shapes(proto: Any, given: str, size: tuple[int, ...], tensors: tuple[str, str], name: str) -> dict[str, list[int]]:
    """Return the shapes of tensors, and of what is joined to make them, for one image. Raises StageError."""
    import onnx
    import onnxruntime

    wanted = {
        *tensors,
        *(i for n in proto.graph.node if n.op_type == "Concat" and {*tensors} & {*n.output} for i in n.input),
    }
    wanted &= {output for node in proto.graph.node for output in node.output}
    probed = onnx.ModelProto()
    probed.CopyFrom(proto)
    has = {o.name for o in probed.graph.output}
    probed.graph.output.extend(onnx.ValueInfoProto(name=t) for t in sorted(wanted - has))
    names = sorted(wanted)
    try:
        session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
        found = session.run(names, {given: np.zeros((1, *size), np.float32)})
    except Exception as error:  # ONNX Runtime's own kinds
        raise StageError(f"{name}: ONNX Runtime does not run it: {' '.join(str(error).split())[:200]}") from None
    return {n: list(array.shape) for n, array in zip(names, found, strict=True)}


def _rename(graph: Any) -> None:
    """Put `given/` before every name of a graph and of those within it: the file may have the names of the line."""
    for named in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        named.name = f"given/{named.name}"
    for node in graph.node:
        node.name = f"given/{node.name}" if node.name else ""
        for field in (node.input, node.output):
            field[:] = [f"given/{name}" if name else "" for name in field]
        for attribute in node.attribute:
            for within in [attribute.g, *attribute.graphs]:
                _rename(within)


def _needed(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """Return the nodes on which outputs depend, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


@dataclass(frozen=True)
class Facts:
    """What an ONNX file says of itself."""

    layout: str
    size: tuple[int, int] | None  # height and width of its input, where they are fixed
    softmax: bool  # whether it ends in one
    outputs: dict[str, list[int]]  # their axes, 0 where they are free
    sigmoid: bool  # whether one is before the end


def facts(path: Path, channels: int) -> Facts:
    """Return what a file says of itself. Raises StageError as `read` does."""
    graph = read(path).graph
    dims = [d.dim_value for d in _input(graph, path.name).type.tensor_type.shape.dim]
    layout = "nhwc" if len(dims) == 4 and dims[3] == channels != dims[1] else "nchw"
    sides = dims[1:3] if layout == "nhwc" else dims[2:4]
    ends = {o.name for o in graph.output}
    last = [n for n in graph.node if ends & set(n.output)]
    joined = {i for n in last if n.op_type == "Concat" for i in n.input}
    return Facts(
        layout,
        (sides[0], sides[1]) if len(sides) == 2 and all(sides) else None,
        any(n.op_type == "Softmax" for n in last),
        {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.output},
        any(n.op_type == "Sigmoid" and (ends | joined) & set(n.output) for n in graph.node),
    )


def check(path: Path, shape: tuple[int, ...], classes: int, name: str, detects: bool = False) -> None:
    """Raise StageError unless ONNX Runtime gives what `main` says, the same for an image alone and in a batch."""
    import onnxruntime

    images = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    names = ["scores", "boxes"] if detects else [OUTPUT]
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        several = [session.run(names, {INPUT: images[n : n + 1]}) for n in range(3)]
        alone = [np.concatenate(parts) for parts in zip(*several, strict=True)]
    except Exception as error:  # ONNX Runtime's own kinds
        raise StageError(f"{name}: ONNX Runtime does not run it: {' '.join(str(error).split())[:200]}") from None
    right = [(3, classes, *alone[-1].shape[2:]), (3, 4, *alone[0].shape[2:])] if detects else [(3, classes)]
    if [a.shape for a in alone] != right:
        given = ", ".join(" x ".join(map(str, ["N", *a.shape[1:]])) for a in alone)
        raise StageError(f"{name}: gives {given}, the data have {classes} classes; see student.classes, student.output")
    try:
        found = session.run(names, {INPUT: images})
        difference = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, alone, strict=True))
    except Exception:  # ONNX Runtime's own kinds
        difference = np.inf
    if not difference <= TOLERANCE:
        raise StageError(f"{name}: does not take a batch; export it with a dynamic first axis")


if __name__ == "__main__":
    run(main)
