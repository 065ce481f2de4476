"""A finished ONNX file becomes the model of the line, whatever its names, axes and order of classes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipelines import adopt
from pipelines.models.onnx import Options
from pipelines.stage import StageError
from pipelines.tasks.detection import decode

SHAPE, CLASSES = (3, 8, 6), ["ant", "bee", "cow"]
PLAIN = {
    "path": "m.onnx", "layout": "nchw", "order": "rgb", "output": None, "scores": "logits", "classes": None,
}  # fmt: skip


class Net(torch.nn.Module):
    def __init__(self, last: bool = False, softmax: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.line = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 3)
        self.last, self.softmax = last, softmax

    def forward(self, x):
        x = self.conv(x.permute(0, 3, 1, 2) if self.last else x)
        y = self.line(torch.relu(x).mean((2, 3)))
        return y.softmax(1) if self.softmax else y


def exported(path, net=None, opset=17, dynamic=True, shape=SHAPE, **more):
    axes = {"pixels": {0: "batch"}, "scores": {0: "batch"}} if dynamic else None
    torch.onnx.export(
        net or Net(), torch.zeros(1, *shape), str(path), dynamo=False, opset_version=opset, input_names=["pixels"],
        output_names=["scores"], dynamic_axes=axes, **more,
    )  # fmt: skip
    return path


def taken(path, tmp_path, **changes):
    made = adopt.adopted(adopt.read(path), Options(**{**PLAIN, **changes}), CLASSES, SHAPE, path.name)
    file = tmp_path / "taken.onnx"
    file.write_bytes(made.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(file), full_check=True)
    adopt.check(file, SHAPE, 3, path.name)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["outputs"], {"images": images})[0]


IMAGES = np.random.default_rng(0).random((4, *SHAPE), np.float32)


def wanted(net, images=IMAGES):
    return net.eval()(torch.from_numpy(np.ascontiguousarray(images))).detach().numpy()


def test_a_plain_file_gives_what_it_gave(tmp_path):
    for opset, dynamic in ((11, True), (17, True), (17, False)):
        found = taken(exported(tmp_path / "m.onnx", opset=opset, dynamic=dynamic), tmp_path)
        assert np.allclose(found(IMAGES), wanted(Net()), atol=1e-6)


def test_a_file_that_has_the_names_of_the_line_already(tmp_path):
    net = Net()
    torch.onnx.export(
        net, torch.zeros(1, *SHAPE), tmp_path / "m.onnx", dynamo=False, input_names=["images"], output_names=["outputs"]
    )
    assert np.allclose(taken(tmp_path / "m.onnx", tmp_path)(IMAGES), wanted(net), atol=1e-6)
    assert np.allclose(taken(tmp_path / "taken.onnx", tmp_path)(IMAGES), wanted(net), atol=1e-6)


def test_channels_last_and_blue_first(tmp_path):
    file = exported(tmp_path / "m.onnx", Net(last=True), shape=(8, 6, 3))
    found = taken(file, tmp_path, layout="nhwc", order="bgr")
    assert np.allclose(found(IMAGES), wanted(Net(), IMAGES[:, ::-1]), atol=1e-6)
    found = adopt.facts(file, 3)
    assert (found.layout, found.size, found.softmax) == ("nhwc", (8, 6), False)


def test_probabilities_become_logits_again_with_the_softmax_or_without(tmp_path):
    file = exported(tmp_path / "m.onnx", Net(softmax=True))
    found = adopt.facts(file, 3)
    assert (found.layout, found.size, found.softmax) == ("nchw", (8, 6), True)
    assert np.allclose(taken(file, tmp_path, scores="probabilities")(IMAGES), wanted(Net()), atol=1e-5)
    proto = onnx.load(file)
    proto.graph.node.append(helper.make_node("Identity", ["scores"], ["copy"]))
    proto.graph.output[0].name = "copy"
    onnx.save(proto, file)
    logs = taken(file, tmp_path, scores="probabilities")(IMAGES)
    assert np.allclose(np.exp(logs), wanted(Net(softmax=True)), atol=1e-6)


def test_classes_in_another_order_and_more_of_them(tmp_path):
    found = taken(exported(tmp_path / "m.onnx"), tmp_path, classes=["cow", "ant", "bee"])
    assert np.allclose(found(IMAGES), wanted(Net())[:, [1, 2, 0]], atol=1e-6)
    with pytest.raises(StageError, match=r"student\.classes: lacks bee, cow, of the data"):
        taken(exported(tmp_path / "m.onnx"), tmp_path, classes=["ant", "elk", "fly"])


def test_the_output_that_is_named_is_taken_and_the_rest_is_gone(tmp_path):
    proto = onnx.load(exported(tmp_path / "m.onnx"))
    proto.graph.node.append(helper.make_node("Exp", ["scores"], ["other"]))
    proto.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 3]))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(StageError, match=r"student\.output: m\.onnx has scores, other; name one"):
        taken(tmp_path / "m.onnx", tmp_path)
    with pytest.raises(StageError, match=r"student\.output: m\.onnx has no 'logits'; its outputs: scores, other"):
        taken(tmp_path / "m.onnx", tmp_path, output="logits")
    assert np.allclose(taken(tmp_path / "m.onnx", tmp_path, output="scores")(IMAGES), wanted(Net()), atol=1e-6)
    made = adopt.adopted(adopt.read(tmp_path / "m.onnx"), Options(**PLAIN | {"output": "scores"}), CLASSES, SHAPE, "m")
    assert "Exp" not in {n.op_type for n in made.graph.node}


def test_what_cannot_be_taken_is_one_clear_line(tmp_path):
    file = tmp_path / "m.onnx"
    with pytest.raises(StageError, match="no such file"):
        adopt.read(file)
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(StageError, match="not a valid ONNX file"):
        adopt.read(file)
    with pytest.raises(StageError, match=r"takes 3 x 5 x 5 \(nchw\), not 3 x 8 x 6"):
        taken(exported(file, shape=(3, 5, 5)), tmp_path)
    proto = onnx.load(exported(file))
    onnx.save(proto, file, save_as_external_data=True, location="elsewhere", size_threshold=0)
    with pytest.raises(StageError, match="weights lie in another file; save it as one file"):
        adopt.read(file)
    proto = onnx.load(exported(file))
    proto.graph.node.append(helper.make_node("Gelu", ["scores"], ["g"], domain="com.microsoft"))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, file)
    with pytest.raises(StageError, match=r"not ONNX's \(com\.microsoft\.Gelu\)"):
        adopt.read(file)
    proto = onnx.load(exported(file))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    proto.graph.node.append(helper.make_node("QuantizeLinear", ["scores", "s"], ["q"]))
    onnx.save(proto, file)
    with pytest.raises(StageError, match="is quantized already"):
        adopt.read(file)
    proto = onnx.load(exported(file))
    proto.graph.node.append(helper.make_node("Add", ["scores", "more"], ["sum"]))
    proto.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    onnx.save(proto, file)
    with pytest.raises(StageError, match=r"has 2 inputs \(pixels, more\); one is taken"):
        taken(file, tmp_path)


class Baked(Net):
    def forward(self, x):
        return super().forward(x.reshape(1, 3, 8, 6)).reshape(1, 3)


def test_a_baked_batch_and_a_wrong_number_of_classes_are_found(tmp_path):
    with pytest.raises(StageError, match="does not take a batch; export it with a dynamic first axis"):
        taken(exported(tmp_path / "m.onnx", Baked(), dynamic=False), tmp_path)
    made = adopt.adopted(adopt.read(exported(tmp_path / "m.onnx")), Options(**PLAIN), CLASSES, SHAPE, "m.onnx")
    (tmp_path / "t.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(StageError, match="the data have 4 classes"):
        adopt.check(tmp_path / "t.onnx", SHAPE, 4, "m.onnx")


class Boxed(torch.nn.Module):
    """A detector of 12 candidates and three classes, in one of the forms in which files give them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.conv = form, torch.nn.Conv2d(3, 8, 2, 2)

    def found(self, x):
        """Return the logits of an object and of three classes, N x 4 x 12, and boxes in pixels: centre and sides."""
        x = self.conv(x).flatten(2)
        return x[:, 4:], 3 + 4 * x[:, :4].sigmoid()

    def forward(self, x):
        (scores, boxes), form = self.found(x), self.form
        if form == "objects":
            return torch.cat([boxes, scores.sigmoid()], 1).transpose(1, 2)
        scores = scores[:, 1:]
        if form == "apart":
            low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
            return scores.transpose(1, 2), (torch.cat([low, high], 1) / torch.tensor([6, 8, 6, 8])[:, None]).transpose(
                1, 2
            )
        if form == "ends":  # the best of each class, and which class that is
            scores, label = scores.sigmoid().transpose(1, 2).max(2, keepdim=True)
            return torch.cat([boxes.transpose(1, 2), scores, label.float()], 2)
        joined = torch.cat([boxes, scores.sigmoid()], 1)
        return joined + 0 * x.mean() if form == "hidden" else joined


DETECTS = {**PLAIN, "scores": "probabilities",
           "boxes": {"output": None, "corners": "cxcywh", "unit": "pixels", "overlap": 0.7}}  # fmt: skip
APART = {**PLAIN, "output": "scores",
         "boxes": {"output": "boxes", "corners": "xyxy", "unit": "shares", "overlap": None}}  # fmt: skip


def detector(tmp_path, form, options=DETECTS, names=("found",)):
    torch.onnx.export(
        Boxed(form).eval(), torch.zeros(1, *SHAPE), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17,
        input_names=["pixels"], output_names=list(names), dynamic_axes={n: {0: "N"} for n in ("pixels", *names)},
    )  # fmt: skip
    made = adopt.adopted(adopt.read(tmp_path / "m.onnx"), Options(**options), CLASSES, SHAPE, "m.onnx")
    (tmp_path / "taken.onnx").write_bytes(made.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(tmp_path / "taken.onnx"), full_check=True)
    adopt.check(tmp_path / "taken.onnx", SHAPE, 3, "m.onnx", detects=True)
    session = onnxruntime.InferenceSession(tmp_path / "taken.onnx", providers=["CPUExecutionProvider"])
    return made, session.run(["scores", "boxes"], {"images": IMAGES})


@pytest.mark.parametrize(
    ("form", "options", "names"),
    [
        ("joined", DETECTS, ["found"]),
        ("hidden", DETECTS, ["found"]),
        ("objects", DETECTS, ["found"]),
        ("apart", APART, ["scores", "boxes"]),
        ("apart", {**APART, "classes": ["ant", "bee", "cow"]}, ["scores", "boxes"]),
    ],
)
def test_a_detector_in_any_form_gives_logits_and_shares(tmp_path, form, options, names):
    made, (scores, boxes) = detector(tmp_path, form, options, names)
    with torch.inference_mode():
        logits, wanted = (t.numpy() for t in Boxed(form).found(torch.from_numpy(IMAGES)))
    if form == "objects":
        right = (1 / (1 + np.exp(-logits))).astype(np.float64)
        right = right[:, :1] * right[:, 1:]
        assert np.allclose(1 / (1 + np.exp(-scores)), right, atol=1e-5)
    else:
        assert np.allclose(scores, logits[:, 1:], atol=1e-5)
    low, high = wanted[:, :2] - wanted[:, 2:] / 2, wanted[:, :2] + wanted[:, 2:] / 2
    assert np.allclose(boxes, np.concatenate([low, high], 1) / np.array([6, 8, 6, 8])[:, None], atol=1e-6)
    joins = [n for n in made.graph.node if n.op_type == "Concat" and n.name.startswith("given/")]
    shared = [n for n in joins if n.attribute[0].i in (1, 2) and len(n.input) == 2]
    assert bool(shared) == (form != "joined"), "scores and boxes share a scale where it can be avoided"


def test_a_detector_that_selects_or_fits_no_form_is_one_clear_line(tmp_path):
    with pytest.raises(StageError, match=r"objects that the model itself has chosen; name tensors before that"):
        detector(tmp_path, "ends", {**DETECTS, "classes": ["ant", "bee"]})
    with pytest.raises(StageError, match=r"found is N x 7 x 12; wanted is N x A x 9 or 10 \(5 classes; see"):
        detector(tmp_path, "joined", {**DETECTS, "classes": ["ant", "bee", "cow", "dog", "elk"]})
    with pytest.raises(StageError, match=r"student\.boxes\.output: m\.onnx has no 'sides'; its outputs: scores, boxes"):
        detector(tmp_path, "apart", {**APART, "boxes": {**APART["boxes"], "output": "sides"}}, ["scores", "boxes"])


def test_candidates_become_objects():
    logits, shares = np.full((1, 2, 3), -9.0), np.zeros((1, 4, 3))
    logits[0, 1] = [2, 1.5, 0]
    shares[0] = np.array([[0.1, 0.2, 0.5, 0.6], [0.1, 0.2, 0.5, 0.61], [0.7, 0.7, 0.9, 0.8]]).T
    wanted = {"most": 100, "least": 0.3, "overlap": 0.7}
    (found,) = decode.cells([logits, shares], wanted)
    assert np.allclose(found[:, :5], [[0.1, 0.2, 0.4, 0.4, 1], [0.7, 0.7, 0.2, 0.1, 1]])
    assert np.allclose(found[:, 5], 1 / (1 + np.exp([-2.0, 0])))
    (found,) = decode.cells([logits, shares], {**wanted, "overlap": None})
    assert len(found) == 3
