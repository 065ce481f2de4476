"""ONNX files equal torch, take any batch, and are the same bytes each time."""

import onnx
import pytest
import torch

from pipelines import fp32
from pipelines.stage import StageError
from tests.pipelines.test_models import SHAPE, TRAINED, build


@pytest.mark.parametrize("family", TRAINED)
def test_bytes_repeat_and_hold_no_path(family, tmp_path):
    for name in ("one", "two"):
        fp32.export(build(family), SHAPE, tmp_path / f"{name}.onnx")
    data = (tmp_path / "one.onnx").read_bytes()
    assert data == (tmp_path / "two.onnx").read_bytes()
    assert b"/pipelines/" not in data and str(tmp_path).encode() not in data
    assert onnx.load(tmp_path / "one.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_a_difference_from_torch_is_found(tmp_path):
    model = build("separable")
    fp32.export(model, SHAPE, tmp_path / "m.onnx")
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    with pytest.raises(StageError, match=r"m\.onnx: ONNX differs from torch by"):
        fp32.compare(model, tmp_path / "m.onnx", SHAPE)


def test_a_fixed_batch_is_found(tmp_path):
    model = build("separable")
    torch.onnx.export(model, (torch.zeros(1, *SHAPE),), tmp_path / "m.onnx", dynamo=False, input_names=["images"])
    with pytest.raises(Exception, match=r"(?i)batch|dimension"):
        fp32.compare(model, tmp_path / "m.onnx", SHAPE)
