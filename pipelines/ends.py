"""What stands before and after a model that is given as ONNX, to bring it into the form of the line."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.models.onnx import INPUT, OUTPUT, Options
from pipelines.stage import StageError

TINY = 1e-12  # the least probability of a class, before its logarithm
SURE = 1e-6  # how far from 0 and 1 the scores of a detector stay, before their logit


@dataclass
class Ends:
    """The nodes before a graph, those after it, their constants, and the outputs: name -> axes after the first."""

    first: list[Any] = field(default_factory=list)
    last: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict)

    def constant(self, value: Any) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), f"quantmill/constant{len(self.constants)}"))
        return str(self.constants[-1].name)

    def add(self, kind: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> Any:
        """Add an operator after the graph; return the name of its output, or the names of several."""
        from onnx import helper

        at = f"quantmill/out{len(self.last)}_{kind}"
        names = [at] if outputs == 1 else [f"{at}_{n}" for n in range(outputs)]
        self.last.append(helper.make_node(kind, inputs, names, name=at, **attributes))
        return at if outputs == 1 else names

    def end(self, tensor: str, name: str, axes: list[Any]) -> None:
        """Make a tensor an output of the model."""
        made = next((n for n in self.last if tensor in n.output), None)
        if made is not None and not any(tensor in n.input for n in self.last):
            made.output[:] = [name if o == tensor else o for o in made.output]
        else:
            self.last[-1:] = [*self.last[-1:], _identity(tensor, name)]
        self.outputs[name] = axes


def _identity(source: str, name: str) -> Any:
    from onnx import helper

    return helper.make_node("Identity", [source], [name], name=f"quantmill/{name}")


def before(ends: Ends, options: Options, given: str) -> None:
    """Bring images, N x C x H x W in the order RGB, to what the model's input `given` takes."""
    from onnx import helper

    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if options.order == "bgr":
        steps.append(("Gather", [ends.constant(np.array([2, 1, 0]))], {"axis": 1}))
    if options.layout == "nhwc":
        steps.append(("Transpose", [], {"perm": [0, 2, 3, 1]}))
    names = [INPUT, *(f"quantmill/in{n}" for n in range(1, len(steps))), given]
    for n, (kind, rest, attributes) in enumerate(steps or [("Identity", [], {})]):
        ends.first.append(
            helper.make_node(kind, [names[n], *rest], [names[n + 1]], name=f"quantmill/in{n}_{kind}", **attributes)
        )


def classifier(ends: Ends, graph: Any, options: Options, scores: str, classes: list[str]) -> None:
    """Bring the scores of a classifier, N x classes, to logits in the order of `classes`, as output `outputs`."""
    last = _maker(graph, scores)
    if options.scores == "probabilities":
        if last is not None and last.op_type == "Softmax":
            scores = last.input[0]
        else:
            scores = ends.add("Log", [ends.add("Max", [scores, ends.constant(np.float32(TINY))])])
    ends.end(_ordered(ends, options, scores, classes), OUTPUT, [len(classes)])


def detector(
    ends: Ends,
    graph: Any,
    options: Options,
    tensors: tuple[str, str],
    shapes: dict[str, list[int]],
    size: tuple[int, int],
    classes: list[str],
    name: str,
) -> None:
    """Bring a detector's `tensors`, of scores and boxes, to the outputs `scores` and `boxes` of `adopt.main`.

    One tensor may hold both: 4 places for the box, then perhaps one for whether there is an object, then the classes.
    Where a concatenation makes it, what it joins is taken, since an INT8 scale for both would leave nothing of the
    scores. `shapes` are those of the tensors and of what such a one joins, for one image; `size` is the input's height
    and width in pixels. Raises StageError when a shape fits no such form.
    """
    assert options.boxes
    scores, boxes = tensors
    known = len(options.classes or classes)
    joint = 4 if scores == boxes else 0
    rows = _rows(shapes[scores], [joint + known, joint + known + 1], scores, known, name)
    parts = _joined(graph, scores, shapes, rows) if joint else None
    if parts:
        boxes, scores = parts
    objects = shapes[tensors[0]][rows] == joint + known + 1
    scores = _turned(ends, scores, rows)
    if joint and not parts:
        boxes, scores = ends.add("Split", [scores, ends.constant(np.array([4, known + objects]))], 2, axis=1)
    elif joint:
        boxes = _turned(ends, boxes, rows)
    else:
        boxes = _turned(ends, boxes, _rows(shapes[boxes], [4], boxes, 4, name))
    last = _maker(graph, scores)
    if options.scores == "probabilities" and not objects and last is not None and last.op_type == "Sigmoid":
        scores = last.input[0]
    elif objects or options.scores == "probabilities":
        if options.scores == "logits":
            scores = ends.add("Sigmoid", [scores])
        if objects:
            scores = ends.add("Mul", ends.add("Split", [scores, ends.constant(np.array([1, known]))], 2, axis=1))
        low, high = ends.constant(np.float32(SURE)), ends.constant(np.float32(1 - SURE))
        scores = ends.add("Clip", [scores, low, high])
        rest = ends.add("Sub", [ends.constant(np.float32(1)), scores])
        scores = ends.add("Log", [ends.add("Div", [scores, rest])])
    ends.end(_ordered(ends, options, scores, classes), "scores", [len(classes), "A"])
    if options.boxes.corners == "cxcywh":
        centre, sides = ends.add("Split", [boxes, ends.constant(np.array([2, 2]))], 2, axis=1)
        half = ends.add("Mul", [sides, ends.constant(np.float32(0.5))])
        boxes = ends.add("Concat", [ends.add("Sub", [centre, half]), ends.add("Add", [centre, half])], axis=1)
    if options.boxes.unit == "pixels":
        edges = np.array([size[1], size[0]] * 2, np.float32)[:, None]
        boxes = ends.add("Mul", [boxes, ends.constant(1 / edges)])
    ends.end(boxes, "boxes", [4, "A"])


def _ordered(ends: Ends, options: Options, scores: str, classes: list[str]) -> str:
    """Return scores with the classes, on axis 1, in the order of `classes`."""
    if options.classes is None:
        return scores
    if lost := sorted(set(classes) - set(options.classes)):
        raise StageError(f"params.yaml: student.classes: lacks {', '.join(lost[:5])}, of the data")
    places = np.array([options.classes.index(c) for c in classes])
    return str(ends.add("Gather", [scores, ends.constant(places)], axis=1))


def _maker(graph: Any, tensor: str) -> Any:
    return next((n for n in graph.node if tensor in n.output), None)


def _turned(ends: Ends, tensor: str, rows: int) -> str:
    return tensor if rows == 1 else str(ends.add("Transpose", [tensor], perm=[0, 2, 1]))


def _rows(shape: list[int], wanted: list[int], tensor: str, known: int, name: str) -> int:
    """Return the axis that has a wanted length, 2 where both have; the other one is that of the candidates."""
    found = [axis for axis in (2, 1) if len(shape) == 3 and shape[axis] in wanted]
    if not found:
        raise StageError(
            f"{name}: {tensor.removeprefix('given/')} is {' x '.join(map(str, ['N', *shape[1:]]))}; wanted is N x A x "
            f"{' or '.join(map(str, wanted))} ({known} classes; see student.classes), or with the axes exchanged"
        )
    return found[0]


def _joined(graph: Any, tensor: str, shapes: dict[str, list[int]], rows: int) -> tuple[str, str] | None:
    """Return the boxes and the scores that a concatenation joins, or None where it is another operator."""
    last = _maker(graph, tensor)
    if last is None or last.op_type != "Concat" or len(last.input) != 2:
        return None
    boxes, scores = last.input
    return (boxes, scores) if shapes[boxes][rows] == 4 and shapes[boxes][0:rows] == shapes[tensor][0:rows] else None
