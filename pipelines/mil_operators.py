"""How the operators of a Core ML program are computed with torch.

Source: coremltools' reference of the Model Intermediate Language (MIL), operators of iOS 15 and 16.
"""

import re
from collections.abc import Callable
from typing import Any

Tensor = Callable[[str], Any]  # an input of the operator by name, None where it has none
Setting = Callable[..., Any]  # a constant of it by name, as a number, text or list, or a default
Operator = Callable[[Tensor, Setting], Any]  # returns a tensor, or a list where there are more outputs
UNARY = ("abs", "ceil", "cos", "erf", "exp", "floor", "relu", "relu6", "sigmoid", "silu", "sin", "softplus", "sqrt")
BINARY = {
    "add": "add",
    "equal": "eq",
    "floor_div": "floor_divide",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "maximum": "maximum",
    "minimum": "minimum",
    "mul": "mul",
    "pow": "pow",
    "real_div": "div",
    "sub": "sub",
}
REDUCE = {"reduce_max": "amax", "reduce_mean": "mean", "reduce_min": "amin", "reduce_sum": "sum"}


def table() -> dict[str, Operator]:
    """Return the function of each kind of operator."""
    import torch
    from torch.nn import functional

    found: dict[str, Operator] = {
        "avg_pool": lambda t, s: _pool(
            t, s, functional.avg_pool2d, count_include_pad=not s("exclude_padding_from_average", False)
        ),
        "batch_norm": lambda t, s: functional.batch_norm(
            t("x"), t("mean"), t("variance"), t("gamma"), t("beta"), eps=s("epsilon", 1e-5)
        ),
        "cast": lambda t, s: t("x").to(getattr(torch, re.sub("^fp(16|32)$", "float", s("dtype")))),
        "clip": lambda t, s: t("x").clamp(s("alpha"), s("beta")),
        "concat": lambda t, s: torch.cat(t("values"), s("axis")),
        "conv": _conv,
        "conv_transpose": _conv_transpose,
        "expand_dims": lambda t, s: _expanded(t("x"), s("axes")),
        "gather": _gather,
        "gather_along_axis": lambda t, s: t("x").gather(s("axis", 0), t("indices").long()),
        "gelu": lambda t, s: functional.gelu(t("x"), approximate="none" if s("mode", "EXACT") == "EXACT" else "tanh"),
        "layer_norm": _layer_norm,
        "leaky_relu": lambda t, s: functional.leaky_relu(t("x"), s("alpha", 0.01)),
        "linear": lambda t, s: functional.linear(t("x"), t("weight"), t("bias")),
        "matmul": lambda t, s: (
            (t("x").mT if s("transpose_x", False) else t("x")) @ (t("y").mT if s("transpose_y", False) else t("y"))
        ),
        "max_pool": lambda t, s: _pool(t, s, functional.max_pool2d),
        "pad": _pad,
        "prelu": lambda t, s: functional.prelu(t("x"), t("alpha")),
        "reshape": lambda t, s: t("x").reshape([n or t("x").shape[axis] for axis, n in enumerate(s("shape"))]),
        "rsqrt": lambda t, s: (t("x") + s("epsilon", 1e-12)).rsqrt(),
        "sigmoid_hard": lambda t, s: (t("x") * s("alpha", 0.2) + s("beta", 0.5)).clamp(0, 1),
        "slice_by_index": _slice,
        "softmax": lambda t, s: t("x").softmax(s("axis", -1)),
        "split": _split,
        "square": lambda t, s: t("x").square(),
        "squeeze": lambda t, s: t("x").squeeze(tuple(s("axes"))) if s("axes") else t("x").squeeze(),
        "stack": lambda t, s: torch.stack(t("values"), s("axis", 0)),
        "tanh": lambda t, s: t("x").tanh(),
        "thresholded_relu": lambda t, s: t("x") * (t("x") >= s("alpha", 1.0)),
        "tile": lambda t, s: t("x").repeat(*s("reps")),
        "topk": _topk,
        "transpose": lambda t, s: t("x").permute(*s("perm")),
        "upsample_bilinear": lambda t, s: functional.interpolate(
            t("x"), scale_factor=_scale(s), mode="bilinear", align_corners=s("align_corners", True)
        ),
        "upsample_nearest_neighbor": lambda t, s: functional.interpolate(t("x"), scale_factor=_scale(s)),
    }
    for name in UNARY:
        found[name] = _unary(getattr(torch, name) if hasattr(torch, name) else getattr(functional, name))
    for name, function in BINARY.items():
        found[name] = _binary(getattr(torch, function))
    for name, function in REDUCE.items():
        found[name] = _reduced(getattr(torch, function))
    return found


def _unary(function: Callable[[Any], Any]) -> Operator:
    return lambda t, s: function(t("x"))


def _binary(function: Callable[[Any, Any], Any]) -> Operator:
    return lambda t, s: function(t("x"), t("y"))


def _reduced(function: Callable[..., Any]) -> Operator:
    return lambda t, s: function(t("x"), s("axes") or list(range(t("x").ndim)), s("keep_dims", False))


def _conv(t: Tensor, s: Setting) -> Any:
    from torch.nn import functional

    convolve = functional.conv1d if t("x").ndim == 3 else functional.conv2d
    around = _around(s, t("x").ndim - 2)
    x = functional.pad(t("x"), around) if any(around) else t("x")
    return convolve(x, t("weight"), t("bias"), s("strides", 1), 0, s("dilations", 1), s("groups", 1))


def _conv_transpose(t: Tensor, s: Setting) -> Any:
    from torch.nn import functional

    found = functional.conv_transpose2d(
        t("x"), t("weight"), t("bias"), s("strides", 1), 0, 0, s("groups", 1), s("dilations", 1)
    )
    left, right, top, bottom = _around(s, 2)
    return found[:, :, top : found.shape[2] - bottom, left : found.shape[3] - right]


def _pool(t: Tensor, s: Setting, pool: Callable[..., Any], **options: Any) -> Any:
    left, right, top, bottom = _around(s, 2)
    if (left, top) != (right, bottom):
        raise NotImplementedError("a pooling whose padding differs from side to side")
    return pool(t("x"), s("kernel_sizes"), s("strides"), (top, left), ceil_mode=bool(s("ceil_mode", False)), **options)


def _around(s: Setting, count: int) -> list[int]:
    """Return the padding of an operator in torch's order, the last axis first."""
    kind = s("pad_type", "valid")
    if kind == "valid":
        return [0] * (2 * count)
    if kind != "custom":
        raise NotImplementedError(f"padding of the kind {kind}")
    given = s("pad")
    return [side for axis in reversed(range(count)) for side in given[2 * axis : 2 * axis + 2]]


def _pad(t: Tensor, s: Setting) -> Any:
    from torch.nn import functional

    given = s("pad")
    around = [side for axis in reversed(range(len(given) // 2)) for side in given[2 * axis : 2 * axis + 2]]
    mode = s("mode", "constant")
    if mode == "constant":
        return functional.pad(t("x"), around, value=s("constant_val", 0.0))
    return functional.pad(t("x"), around[:4], mode="replicate" if mode == "replicate" else "reflect")


def _expanded(x: Any, axes: list[int]) -> Any:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(t: Tensor, s: Setting) -> Any:
    x, indices = t("x"), t("indices")
    axis = s("axis", 0) % x.ndim
    found = x.index_select(axis, indices.reshape(-1).long() % x.shape[axis])
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _layer_norm(t: Tensor, s: Setting) -> Any:
    x = t("x")
    axes = s("axes") or list(range(x.ndim))
    found = (x - x.mean(axes, True)) / (x.var(axes, correction=0, keepdim=True) + s("epsilon", 1e-5)).sqrt()
    found = found if t("gamma") is None else found * t("gamma")
    return found if t("beta") is None else found + t("beta")


def _slice(t: Tensor, s: Setting) -> Any:
    x = t("x")
    none = [False] * x.ndim
    begin, end, step = s("begin"), s("end"), s("stride") or [1] * x.ndim
    begin_mask, end_mask, squeeze = (s(f"{name}_mask") or none for name in ("begin", "end", "squeeze"))
    if min(step) < 1:
        raise NotImplementedError("a slice that goes backwards")
    places = [
        begin[n] if squeeze[n] else slice(None if begin_mask[n] else begin[n], None if end_mask[n] else end[n], step[n])
        for n in range(x.ndim)
    ]
    return x[tuple(places)]


def _split(t: Tensor, s: Setting) -> Any:
    x, axis = t("x"), s("axis")
    return list(x.split(s("split_sizes") or x.shape[axis] // s("num_splits"), axis))


def _topk(t: Tensor, s: Setting) -> Any:
    found, indices = t("x").topk(s("k", 1), s("axis", -1), not s("ascending", False))
    return [found, indices.int()]


def _scale(s: Setting) -> tuple[float, float]:
    return float(s("scale_factor_height", 1)), float(s("scale_factor_width", 1))
