"""A model by import path: of timm, of torchvision, or of the user's own module.

`path` names a callable that returns a `torch.nn.Module` from N x C x H x W to logits N x classes. The project's
folder comes first on the import path, so that a file of the user's beside `params.yaml` is found.
"""

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from pipelines.params import Section
from pipelines.stage import StageError

if TYPE_CHECKING:
    from torch import nn


class Options(Section):
    """What is called, and with what."""

    path: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$", description="Such as timm.create_model.")
    arguments: dict[str, Any] = Field(description="Passed by name, such as {model_name: resnet10t, num_classes: 10}.")
    features: str | None = Field(
        default=None,
        description="The submodule whose output, N x D x h x w, feature distillation compares; none without it.",
    )
    head: str | None = Field(
        default=None,
        description="The submodule that gives the logits; found by its width where it is not named.",
    )

    @field_validator("path")
    @classmethod
    def _is_there(cls, path: str) -> str:
        top = path.partition(".")[0]
        _project_first()
        if importlib.util.find_spec(top) is None:
            raise ValueError(f"{path}: no module {top!r} here; install it, or put {top}.py beside params.yaml")
        return path


def build(options: Options, channels: int, classes: int) -> "nn.Module":
    """Return what the callable returns, with `features` and `head` where the line looks for them.

    Raises StageError when there is no such callable, it fails, or it returns no module.
    """
    from torch import nn

    where = f"params.yaml: {options.path}"
    try:
        net = _callable(options.path)(**options.arguments)
    except StageError:
        raise
    except Exception as error:  # whatever somebody else's code raises
        raise StageError(f"{where}: calling it failed: {_line(error)}; see `arguments`") from None
    if not isinstance(net, nn.Module):
        raise StageError(f"{where}: returned {type(net).__name__}, not a torch.nn.Module; name what builds the model")
    for key, name in (("features", options.features), ("head", options.head)):
        if name is not None and name not in dict(net.named_modules()):
            known = ", ".join(n for n, _ in net.named_children())
            raise StageError(f"{where}: {key}: the model has no submodule {name!r}; have: {known}, and those within")
    head = options.head or _head(net, classes)
    if head is None:
        raise StageError(
            f"{where}: no layer gives {classes} values, one for each class of the data; set the number of classes in "
            "`arguments` (num_classes), or name the layer in `head`"
        )

    class Imported(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        @property
        def head(self) -> nn.Module:
            return self.net.get_submodule(head)

        @property  # not registered a second time, or its weights would stand twice in the file
        def features(self) -> nn.Module:
            if options.features is None:
                raise AttributeError("features")
            return self.net.get_submodule(options.features)

        def forward(self, x: Any) -> Any:
            return self.net(x)

    return Imported()


def _project_first() -> None:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, and a console script does not


def _callable(path: str) -> Any:
    _project_first()
    name, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(name), attribute)
    except AttributeError:
        raise StageError(f"params.yaml: {path}: {name} has no {attribute!r}") from None
    except ModuleNotFoundError as error:
        raise StageError(f"params.yaml: {path}: importing {name} failed: {error}; install what it needs") from None
    except Exception as error:  # an import runs somebody else's code
        raise StageError(f"params.yaml: {path}: importing {name} failed: {_line(error)}") from None


def _head(net: "nn.Module", classes: int) -> str | None:
    """Return the name of the last layer with one output for each class."""
    from torch import nn

    wide = {nn.Linear: "out_features", nn.Conv2d: "out_channels"}
    found = [
        name
        for name, layer in net.named_modules()
        if any(isinstance(layer, kind) and getattr(layer, key) == classes for kind, key in wide.items())
    ]
    return found[-1] if found else None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
