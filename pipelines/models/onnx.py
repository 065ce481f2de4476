"""A finished model in an ONNX file: it enters the line at `convert`, and the stages before are left out of it."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.params import Section

OPSET = 17  # the newest that all quantizers take
INPUT, OUTPUT = "images", "outputs"  # of every FP32 model of the line


class Boxes(Section):
    """How a detector's file gives boxes: N x 4 x A or N x A x 4, for A candidates."""

    output: str | None = Field(
        description="Name of the tensor that holds them; null where they stand before the scores, in the same one."
    )
    corners: Literal["cxcywh", "xyxy"] = Field(description="Centre, width and height; or left, top, right, bottom.")
    unit: Literal["pixels", "shares"] = Field(description="Pixels of the model's input, or shares of its edges.")
    overlap: float | None = Field(
        gt=0,
        lt=1,
        description="IoU from which on the weaker of two boxes of a class is dropped; null: boxes are final.",
    )


class Options(Section):
    """Where the file is, what it takes and what it gives."""

    path: str = Field(description="An FP32 ONNX file, beside params.yaml or below.")
    layout: Literal["nchw", "nhwc"] = Field(description="Order of the axes of its input: channels first, or last.")
    order: Literal["rgb", "bgr"] = Field(description="Order of the channels; bgr for models trained with OpenCV.")
    output: str | None = Field(
        description="Name of the tensor that holds the scores, an output or not; null where there is one output only."
    )
    scores: Literal["logits", "probabilities"] = Field(
        description="What it holds: before or after the softmax, or, of a detector, the sigmoid."
    )
    classes: list[str] | None = Field(
        description="The class of each place of the output; null where they are those of the data, sorted."
    )
    boxes: Boxes | None = Field(default=None, description="Of a detector: where and what its boxes are.")

    @model_validator(mode="after")
    def _right(self) -> "Options":
        if self.classes and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        return self
