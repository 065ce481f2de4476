"""Takes a finished FP32 ONNX file into the line, in the place of the converted models."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data import Dataset, Input
from pipelines.files import write_file, write_json
from pipelines.models.onnx import INPUT, OPSET, OUTPUT, Options
from pipelines.params import parse, section, value
from pipelines.stage import StageError, run

LEAST_OPSET = 13  # per-channel QuantizeLinear; older files are brought to OPSET
TOLERANCE = 1e-3  # of the largest output, between an image alone and in a batch
TINY = 1e-12


def main(model: Path, data: Path, out: Path) -> None:
    """Write `out`: `pruned.onnx`, from which targets are made, `preprocess.json` and `model.json`.

    The file becomes what `convert` writes: input `images`, float32 N x C x H x W, and output `outputs`, logits
    N x classes in the order of the data's classes; N is dynamic. Raises StageError when it cannot.
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
        check(part, shape, len(dataset.classes), model.name)
    write_json(out / "preprocess.json", preprocess.to_dict())
    write_json(out / "model.json", {"task": value("task"), "classes": dataset.classes, "channels": shape[0]})


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
    _rename(graph)
    chosen = f"given/{chosen}"
    before, after, constants = _ends(graph, options, given.name, chosen, classes)
    kept = _needed(list(graph.node), after[0].input[0])
    nodes = [*before, *kept, *after]
    weights = {n for node in nodes for n in node.input}
    initializers = [t for t in graph.initializer if t.name in weights] + constants
    made = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", len(classes)])],
        initializers,
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
    if options.output is not None and options.output not in names:
        raise StageError(f"params.yaml: student.output: {name} has no {options.output!r}; have: {', '.join(names)}")
    return str(options.output or names[0])


def _ends(
    graph: Any, options: Options, given: str, chosen: str, classes: list[str]
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the nodes before the model, those after it, and their constants."""
    from onnx import numpy_helper

    constants = []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(value, f"quantmill/{name}"))
        return f"quantmill/{name}"

    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if options.order == "bgr":
        steps.append(("Gather", [constant("bgr", np.array([2, 1, 0]))], {"axis": 1}))
    if options.layout == "nhwc":
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}))
    before = _chain(steps or [("Identity", [], {})], INPUT, given, "in")
    steps = []
    last = next((n for n in graph.node if chosen in n.output), None)
    if options.scores == "probabilities":
        if last is not None and last.op_type == "Softmax":
            chosen = last.input[0]
        else:
            steps += [("Max", [constant("tiny", np.array(TINY, np.float32))], {}), ("Log", [], {})]
    if options.classes is not None:
        if lost := sorted(set(classes) - set(options.classes)):
            raise StageError(f"params.yaml: student.classes: lacks {', '.join(lost[:5])}, of the data")
        places = np.array([options.classes.index(c) for c in classes])
        steps.append(("Gather", [constant("classes", places)], {"axis": 1}))
    return before, _chain(steps or [("Identity", [], {})], chosen, OUTPUT, "out"), constants


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


def _chain(steps: list[tuple[str, list[str], dict[str, Any]]], start: str, end: str, name: str) -> list[Any]:
    from onnx import helper

    between = [start, *(f"quantmill/{name}{n}" for n in range(len(steps) - 1)), end]
    return [
        helper.make_node(kind, [between[n], *rest], [between[n + 1]], name=f"quantmill/{name}{n}_{kind}", **attributes)
        for n, (kind, rest, attributes) in enumerate(steps)
    ]


def _needed(nodes: list[Any], output: str) -> list[Any]:
    """Return the nodes on which an output depends, in their order."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


def facts(path: Path, channels: int) -> tuple[str, tuple[int, int] | None, bool]:
    """Return a file's layout, the height and width of its input where they are fixed, and whether it ends in softmax.

    Raises StageError as `read` does.
    """
    graph = read(path).graph
    dims = [d.dim_value for d in _input(graph, path.name).type.tensor_type.shape.dim]
    layout = "nhwc" if len(dims) == 4 and dims[3] == channels != dims[1] else "nchw"
    sides = dims[1:3] if layout == "nhwc" else dims[2:4]
    ends = {o.name for o in graph.output}
    softmax = any(n.op_type == "Softmax" and ends & set(n.output) for n in graph.node)
    return layout, (sides[0], sides[1]) if len(sides) == 2 and all(sides) else None, softmax


def check(path: Path, shape: tuple[int, ...], classes: int, name: str) -> None:
    """Raise StageError unless ONNX Runtime gives N x classes, the same for an image alone and in a batch."""
    import onnxruntime

    images = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        alone = np.concatenate([session.run([OUTPUT], {INPUT: images[n : n + 1]})[0] for n in range(3)])
    except Exception as error:  # ONNX Runtime's own kinds
        raise StageError(f"{name}: ONNX Runtime does not run it: {' '.join(str(error).split())[:200]}") from None
    if alone.shape != (3, classes):
        given = " x ".join(map(str, ["N", *alone.shape[1:]]))
        raise StageError(f"{name}: gives {given}, the data have {classes} classes; see student.classes, student.output")
    try:
        found = session.run([OUTPUT], {INPUT: images})[0]
        difference = float(np.abs(found - alone).max() / np.abs(alone).max())
    except Exception:  # ONNX Runtime's own kinds
        difference = np.inf
    if not difference <= TOLERANCE:
        raise StageError(f"{name}: does not take a batch; export it with a dynamic first axis")


if __name__ == "__main__":
    run(main)
