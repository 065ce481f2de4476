"""Runtimes: one file each, named in `targets.T.runtime`. A runtime knows how to quantize for it, load it and run it.

Each module has:

- `PACKAGES`, the import names it needs; `TOOLS`, programs of environments of their own;
- `INSTEAD`, what computes the answers of its artifacts where the real thing cannot run, so that nothing is timed, or
  None;
- `PRECISIONS`, what it can make; `FILES`, an artifact's files, the one to load first;
- `Options(Section)`, what stands in `targets.T.options` of an INT8 target;
- `quantize(source, calibration, precision, options, out, keep=()) -> dict`: makes the artifact in the folder `out` from
  an FP32 ONNX file (`calibration` and `options` are None unless the precision is `int8`), and says what was done; the
  operators named in `keep` stay in float;
- `quantized(artifact) -> list[str]`: the operators of an INT8 artifact that `keep` can name;
- `operators(artifact, shape) -> list[Operator]`: what the runtime really executes for one image of `shape`, C, H, W:
  every convolution and matrix product, its multiply-adds, and the precision of the kernel that ran it;
- `load(artifact, threads)`: returns a function from a batch, float32 N x C x H x W, to a list of output arrays. It
  needs numpy and the runtime alone and imports inside itself, so that its source can travel to a device.

One that is run here, so that a search can time it, also has `candidates(options, search) -> list[Options]`: the schemes
to try (`fast` or `thorough`), the declared one first, then from the likeliest on.

It may have `ELSEWHERE`, other places that take its artifacts as they are; `validate` compares their answers.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from dataclasses import dataclass
from types import ModuleType

from pipelines.stage import StageError


@dataclass(frozen=True)
class Operator:
    """One executed convolution or matrix product; `precision` is `int8` or `float`."""

    name: str
    kind: str
    precision: str
    multiply_adds: int


@dataclass(frozen=True)
class Elsewhere:
    """Another place that takes an artifact: the function of a runtime that loads it there, and its environment."""

    name: str
    runtime: str
    environment: tuple[tuple[str, str], ...] = ()
    load: str = "load"


# OpenVINO reads ONNX too, and is the one whose instruction set can be capped, by that of its library oneDNN.
OPENVINO = (
    Elsewhere("OpenVINO", "openvino"),
    Elsewhere("OpenVINO, AVX-512 without VNNI", "openvino", (("ONEDNN_MAX_CPU_ISA", "AVX512_CORE"),)),
    Elsewhere("OpenVINO, AVX2", "openvino", (("ONEDNN_MAX_CPU_ISA", "AVX2"),)),
)


def names() -> list[str]:
    """Return the names of all runtimes."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def load(name: str, key: str = "runtime") -> ModuleType:
    """Import the module of a runtime. Raises StageError when there is none of that name."""
    if name not in names():
        raise StageError(f"params.yaml: {key}: no such runtime {name!r}; have: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def missing(runtime: ModuleType) -> list[str]:
    """Return the packages and programs of a runtime that are not installed."""
    packages = [p for p in runtime.PACKAGES if importlib.util.find_spec(p) is None]
    return packages + [str(tool) for tool in runtime.TOOLS if not tool.is_file()]


def imports(runtime: ModuleType) -> tuple[str, ...]:
    """Return what `load` imports: what a device needs, which is less than what quantizing needs."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(runtime.load))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return tuple(sorted(n for n in found if n.partition(".")[0] not in {*sys.stdlib_module_names, "pipelines"}))
