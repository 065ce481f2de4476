"""Computes a Core ML program with torch, operator by operator: Core ML itself runs on macOS alone.

A value that the program keeps in FP16 is rounded to it; sums are made in float32.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import mil_operators
from pipelines.stage import StageError


def coremltools() -> ModuleType:
    """Import coremltools without what it says of other packages' versions and of macOS."""
    logging.getLogger("coremltools").setLevel(logging.CRITICAL)
    with silence():
        import coremltools
        import coremltools.optimize.coreml

    module: ModuleType = coremltools
    return module


@contextmanager
def silence() -> Iterator[None]:
    """Keep coremltools' progress bars and torch's warnings from standard error."""
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def program(package: Path) -> list[Any]:
    """Return the operators of a package in their order, constants among them."""
    return list(_main(package).operations)


def load(package: Path, threads: int) -> Callable[[NDArray[np.float32]], list[NDArray[Any]]]:
    """Return what computes the answers of a package; a batch goes through it image by image.

    Raises StageError for an operator that is not known here.
    """
    import torch

    main, known = _main(package), mil_operators.table()
    weights, steps = {}, []
    for one in main.operations:
        if one.op_type.startswith("constexpr"):
            weights[one.outputs[0].name] = _tensor(one.materialized_val_inference())
        elif one.op_type != "const":
            steps.append(one)
    if strange := {step.op_type for step in steps} - set(known):
        raise StageError(f"{package.name}: Core ML's {', '.join(sorted(strange))} cannot be computed here")
    (entry,) = main.inputs

    def answer(image: NDArray[np.float32]) -> list[NDArray[Any]]:
        values = {**weights, entry: torch.from_numpy(image[None])}

        def tensor(var: Any) -> Any:
            if isinstance(var, (list, tuple)):
                return [tensor(one) for one in var]
            if var.name not in values:
                values[var.name] = weights[var.name] = _tensor(var.val)
            return values[var.name]

        def given(inputs: dict[str, Any], name: str) -> Any:
            return None if inputs.get(name) is None else tensor(inputs[name])

        for step in steps:
            found = known[step.op_type](partial(given, step.inputs), partial(_setting, step.inputs))
            for var, value in zip(step.outputs, found if isinstance(found, (list, tuple)) else [found], strict=True):
                values[var.name] = _rounded(value, var)
        return [values[var.name].float().numpy() for var in main.outputs]

    def predict(batch: NDArray[np.float32]) -> list[NDArray[Any]]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                return [np.concatenate(parts) for parts in zip(*map(answer, batch), strict=True)]
        finally:
            torch.set_num_threads(before)

    return predict


def _main(package: Path) -> Any:
    coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load_mil_proto
    from coremltools.proto import Model_pb2

    folder = package / "Data/com.apple.CoreML"
    spec = Model_pb2.Model.FromString((folder / "model.mlmodel").read_bytes())
    weights = str(folder / "weights")
    return load_mil_proto(spec.mlProgram, spec.specificationVersion, weights).functions["main"]


def _tensor(value: Any) -> Any:
    import torch

    value = np.asarray(value)
    return torch.from_numpy(value.astype(np.float32) if value.dtype.kind == "f" else value.copy())


def _setting(inputs: dict[str, Any], name: str, default: Any = None) -> Any:
    """Return a constant as a number, text or list."""
    var = inputs.get(name)
    if var is None or var.val is None:
        return default
    return var.val.tolist() if isinstance(var.val, (np.ndarray, np.generic)) else var.val


def _rounded(value: Any, var: Any) -> Any:
    from coremltools.converters.mil.mil import types

    return value.half().float() if var.dtype == types.fp16 else value
