"""A finished model in an ONNX file: it enters the line at `convert`, and the stages before are left out of it."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.params import Section

OPSET = 17  # the newest that all quantizers take
INPUT, OUTPUT = "images", "outputs"  # of every FP32 model of the line


class Options(Section):
    """Where the file is, what it takes and what it gives."""

    path: str = Field(description="An FP32 ONNX file, beside params.yaml or below.")
    layout: Literal["nchw", "nhwc"] = Field(description="Order of the axes of its input: channels first, or last.")
    order: Literal["rgb", "bgr"] = Field(description="Order of the channels; bgr for models trained with OpenCV.")
    output: str | None = Field(description="Name of the output to use; null where it has one only.")
    scores: Literal["logits", "probabilities"] = Field(description="What the output holds.")
    classes: list[str] | None = Field(
        description="The class of each place of the output; null where they are those of the data, sorted."
    )

    @model_validator(mode="after")
    def _right(self) -> "Options":
        if self.classes and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        return self
