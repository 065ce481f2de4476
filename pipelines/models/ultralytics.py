"""YOLO26, YOLO11 and YOLOv8 by Ultralytics, whose license is AGPL-3.0; imported in this file alone.

The extra `yolo` installs it. Whoever passes on a model made with it, or lets others use it over a network, has to
read that license, or buy another of Ultralytics. Nothing else in the project needs it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines.files import sha256_file
from pipelines.params import Section
from pipelines.stage import StageError

if TYPE_CHECKING:
    from torch import nn

QUIET = {
    # No telemetry, no updates, nothing installed by itself, and its settings in our folder, not in the user's.
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "YOLO_CONFIG_DIR": ".quantmill",
}
LOGGERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
LEAST = 0.5  # share of the weights that has to come from a file, or it is that of another model


class Weights(Section):
    """A file of weights to start from."""

    file: str = Field(
        pattern=r"\.(pt|safetensors)$", description="Beside params.yaml; a name such as yolo26n.pt is downloaded."
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the file, so that no other is taken for it.")


class Options(Section):
    """The architecture, and the weights to start from."""

    model: str = Field(
        pattern=r"^yolo(26|11|v8)[nsmlx](-cls)?\.yaml$", description="Such as yolo26n.yaml; -cls for classification."
    )
    weights: Weights | None = Field(description="null: from scratch.")


def build(options: Options, channels: int, classes: int) -> "nn.Module":
    """Return the network, every block that cuts a convolution's output in two with a convolution for each half.

    Cut channels cannot be pruned; two convolutions give the same. Raises StageError when Ultralytics does not load.
    """
    import torch

    tasks = _library("nn.tasks")
    kind = tasks.ClassificationModel if "-cls" in options.model else tasks.DetectionModel
    net = kind(options.model, ch=channels, nc=classes, verbose=False)
    _split(net)
    attention = _library("nn.modules.block").Attention

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        @property
        def features(self) -> torch.nn.Module:
            return self.net.model[-2]

        @property
        def head(self) -> torch.nn.Module:
            return self.net.model[-1].linear

        @property
        def unprunable(self) -> list[torch.nn.Module]:  # its heads are cut by number of channels
            return [m for m in self.net.modules() if isinstance(m, attention)]

        def forward(self, x: Any) -> Any:
            outputs = self.net(x)
            return outputs[1] if isinstance(outputs, tuple) else outputs  # in eval mode: probabilities, logits

    return Classifier()


def start(model: "nn.Module", options: Options, key: str) -> None:
    """Put the declared weights into a new model. Layers of another shape, as the head for other classes, stay new.

    A `.pt` file is a pickle: it is read with `weights_only`, which makes nothing but tensors and the known layers of
    torch and Ultralytics. Raises StageError when the file is missing, is another one, or does not fit.
    """
    if options.weights is None:
        return
    file, where = Path(options.weights.file), f"params.yaml: {key}.weights"
    tensors = _read(file, options.weights.sha256, where)
    own = model.net.state_dict()
    tensors = _halved(model.net, tensors)
    fitting = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    share = sum(own[k].numel() for k in fitting) / sum(v.numel() for v in own.values())
    if share < LEAST:
        raise StageError(
            f"{where}.file: {file}: only {share:.0%} of it fits {options.model}; name its own architecture"
        )
    model.net.load_state_dict(fitting, strict=False)
    print(f"{key}: {share:.0%} of the weights are those of {file}")


def _read(file: Path, sha256: str, where: str) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        _verify(file, sha256, where)
        return dict(load_file(file))
    tasks = _library("nn.tasks")
    if not file.exists() and file.name == str(file):
        downloads = _library("utils.downloads")
        try:
            downloads.attempt_download_asset(str(file))
        except (OSError, RuntimeError) as error:
            raise StageError(f"{where}.file: {file}: not here, and not downloaded: {_line(error)}") from None
    _verify(file, sha256, where)
    try:
        found = tasks.torch_safe_load(file, safe_only=True)[0]
        net = found.get("ema") or found["model"]
        return dict(net.float().state_dict())
    except Exception as error:  # a refused class, a damaged file: whatever its kind
        raise StageError(f"{where}.file: {file}: not taken: {_line(error)}") from None


def _verify(file: Path, sha256: str, where: str) -> None:
    if not file.is_file():
        raise StageError(f"{where}.file: {file}: no such file; put it beside params.yaml")
    if (found := sha256_file(file)) != sha256:
        raise StageError(f"{where}.sha256: {file} has {found}; write that where you trust the file")


def _split(net: "nn.Module") -> None:
    """Give every C2f, C3k2 and C2PSA two convolutions in the place of one whose output it cuts in two."""
    import torch

    block = _library("nn.modules.block")
    conv = _library("nn.modules.conv").Conv

    class Halves(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, old: Any) -> None:
            super().__init__()
            wide, width = old.cv1.conv.in_channels, old.c
            self.cv1a, self.cv1b = conv(wide, width, 1, 1), conv(wide, width, 1, 1)
            self.cv2, self.m, self.c = old.cv2, old.m, old.c
            self.f, self.i, self.type, self.np = old.f, old.i, old.type, old.np
            for part in (self.cv1a, self.cv1b):  # Ultralytics sets these after building
                part.bn.eps, part.bn.momentum = old.cv1.bn.eps, old.cv1.bn.momentum

    class HalvesOfC2f(Halves):
        def forward(self, x: Any) -> Any:
            y = [self.cv1a(x), self.cv1b(x)]
            for m in self.m:
                y.append(m(y[-1]))
            return self.cv2(torch.cat(y, 1))

    class HalvesOfC2PSA(Halves):
        def forward(self, x: Any) -> Any:
            return self.cv2(torch.cat((self.cv1a(x), self.m(self.cv1b(x))), 1))

    for index, old in enumerate(net.model):
        if isinstance(old, (block.C2f, block.C2PSA)):
            new = (HalvesOfC2f if isinstance(old, block.C2f) else HalvesOfC2PSA)(old)
            whole = {f"{index}.{k}": v for k, v in old.state_dict().items()}
            halves = _halved(net, {f"model.{k}": v for k, v in whole.items()}, {index})
            new.load_state_dict({k.removeprefix(f"model.{index}."): v for k, v in halves.items()})
            net.model[index] = new


def _halved(net: "nn.Module", tensors: dict[str, Any], at: set[int] | None = None) -> dict[str, Any]:
    """Return a state dict of the original architecture as one of the split one: `model.N.cv1` as its two halves."""
    split = {n for n, m in enumerate(net.model) if hasattr(m, "cv1a")} if at is None else at
    found = {}
    for key, value in tensors.items():
        parts = key.split(".")
        if parts[0] == "model" and int(parts[1]) in split and parts[2] == "cv1":
            halves = value.chunk(2) if value.ndim else (value, value)
            for half, name in zip(halves, ("cv1a", "cv1b"), strict=True):
                found[".".join([*parts[:2], name, *parts[3:]])] = half.clone()
        else:
            found[key] = value
    return found


def _library(name: str) -> Any:
    """Import a module of Ultralytics, its telemetry off. Raises StageError when it, or torchvision, does not load."""
    import importlib

    os.environ |= {key: os.environ.get(key, value) for key, value in QUIET.items()}
    try:
        utils = importlib.import_module("ultralytics.utils")
        found = importlib.import_module(f"ultralytics.{name}")
    except (ImportError, RuntimeError, AttributeError) as error:
        raise StageError(
            f"params.yaml: family ultralytics: {_line(error)}; it needs the extra: pip install 'quantmill[yolo]', and "
            "the torchvision built for this torch"
        ) from None
    if any(utils.SETTINGS[logger] for logger in LOGGERS):
        utils.SETTINGS.update(dict.fromkeys(LOGGERS, False))
    return found


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
