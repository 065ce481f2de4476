"""Model families: one file each, named in `teacher.family` and `student.family`.

Each module has `Options(Section)` and `build(options, channels, classes) -> nn.Module`. `onnx`, a finished model, has
no `build`, and enters at `convert`; a family with pretrained weights has `start(model, options, key)`. A model of
ours maps float32 N x C x H x W to logits N x classes (a detector: to the maps that `tasks/detection` reads, whose names
are `outputs`); its `features` is the submodule whose output, N x D x h x w, is compared in feature distillation (a
model may have none), its `head` the submodule whose outputs are never pruned, and its `unprunable`, where it has any,
are modules that stay as they are.
"""

import importlib
import json
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipelines.files import write_file
from pipelines.params import Section, parse
from pipelines.stage import StageError

if TYPE_CHECKING:
    from torch import nn


def names() -> list[str]:
    """Return the names of all families."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def options_of(family: str) -> type[Section]:
    """Return the options of a family, one of `names()`."""
    found: type[Section] = importlib.import_module(f"{__name__}.{family}").Options
    return found


def options(model: dict[str, Any], key: str) -> tuple[ModuleType, Section]:
    """Return the family's module and the typed options of `{family: NAME, ...}` found under `key`.

    Raises StageError on an unknown family or option.
    """
    rest = dict(model)
    family = rest.pop("family", None)
    if family not in names():
        raise StageError(f"params.yaml: {key}.family: no such family {family!r}; have: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{family}")
    return module, parse(rest, module.Options, key)


def build(model: dict[str, Any], channels: int, classes: int, key: str = "model") -> "nn.Module":
    """Return an untrained model for `{family: NAME, ...}`, its weights drawn from torch's global generator.

    Raises StageError when the family is one of finished models.
    """
    module, typed = options(model, key)
    if not hasattr(module, "build"):
        raise StageError(
            f"params.yaml: {key}.family: {model['family']} is a finished model, and is not trained; see docs"
        )
    built: nn.Module = module.build(typed, channels, classes)
    return built


def start(model: "nn.Module", spec: dict[str, Any], key: str) -> None:
    """Put the weights that the family's options name into a new model, where they name any."""
    module, typed = options(spec["model"], key)
    if hasattr(module, "start"):
        module.start(model, typed, key)


def save(path: Path, model: "nn.Module", spec: dict[str, Any]) -> None:
    """Write weights as safetensors, with `spec` (model, channels, classes, preprocess, ...) as JSON in the header."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().contiguous() for k, v in sorted(model.state_dict().items())}
    with write_file(path) as part:
        save_file(tensors, part, {"spec": json.dumps(spec, sort_keys=True)})


def load(path: Path) -> tuple["nn.Module", dict[str, Any]]:
    """Return the model that `save` wrote, in eval mode, and its spec.

    A pruned model has narrower tensors than its family builds: the layers are narrowed to the tensors.
    Raises StageError when the file is no checkpoint of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            spec = json.loads(file.metadata()["spec"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, TypeError, KeyError, OSError) as error:
        raise StageError(f"{path}: not a checkpoint of the line: {error}; run `dvc repro` to make it again") from None
    model = build(spec["model"], spec["channels"], len(spec["classes"]))
    narrow(model, tensors)
    model.load_state_dict(tensors)
    return model.eval(), spec


def narrow(model: "nn.Module", tensors: dict[str, Any]) -> None:
    """Give each layer of `model` the widths of `tensors`, a state dict of a channel-pruned copy of it."""
    import torch
    from torch import nn

    for name, layer in model.named_modules():
        for key, old in list(layer.named_parameters(recurse=False)) + list(layer.named_buffers(recurse=False)):
            new = tensors.get(f"{name}.{key}")
            if new is not None and new.shape != old.shape:
                empty = torch.empty_like(new)
                setattr(layer, key, nn.Parameter(empty, old.requires_grad) if isinstance(old, nn.Parameter) else empty)
        weight = tensors.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(layer, nn.Conv2d):
            if layer.groups == layer.in_channels > 1:  # depthwise: the same filters per channel as before
                layer.groups = weight.shape[0] // (layer.out_channels // layer.groups)
            layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = weight.shape[0]
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = weight.shape
        elif isinstance(layer, nn.GroupNorm):
            layer.num_channels = weight.shape[0]
        elif isinstance(layer, nn.LayerNorm):
            layer.normalized_shape = tuple(weight.shape)
