"""YOLO26, YOLO11 and YOLOv8 by Ultralytics, whose license is AGPL-3.0; imported in this file alone.

The extra `yolo` installs it. Whoever passes on a model made with it, or lets others use it over a network, has to
read that license, or buy another of Ultralytics. Nothing else in the project needs it.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from pipelines.files import sha256_file
from pipelines.params import Section
from pipelines.stage import StageError

if TYPE_CHECKING:
    from torch import nn

    from pipelines.training import Schedule, Setup

QUIET = {
    # No telemetry, no updates, nothing installed by itself, and its settings in our folder, not in the user's.
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "YOLO_CONFIG_DIR": ".quantmill",
}
LOGGERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
OVERLAP = 0.7  # IoU from which on the weaker of two boxes of a class is dropped; Ultralytics' own default
LEAST_SCORE = 0.001  # of a box that counts; Ultralytics' validator takes the same
TRAINER = {"box", "cls", "dfl", "nbs", "optimizer", "momentum", "warmup_momentum", "warmup_bias_lr", "mosaic", "mixup",
           "cutmix", "copy_paste", "close_mosaic", "hsv_h", "hsv_s", "hsv_v", "shear", "perspective", "flipud", "bgr",
           "multi_scale", "freeze", "single_cls", "cls_pw"}  # fmt: skip
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
    trainer: dict[str, float | int | bool | str] = Field(
        description="More for Ultralytics' trainer of detectors, such as {mosaic: 1.0, close_mosaic: 10}; else {}."
    )

    @field_validator("trainer")
    @classmethod
    def _known(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(trainer) - TRAINER):
            raise ValueError(f"{', '.join(unknown)}: not one of {', '.join(sorted(TRAINER))}")
        return trainer


def build(options: Options, channels: int, classes: int) -> "nn.Module":
    """Return the network, every block that cuts a convolution's output in two with a convolution for each half.

    Cut channels cannot be pruned; two convolutions give the same. A classifier gives logits N x classes. A detector
    gives for each of its maps, fine to coarse, logits N x classes x h x w and distances of the sides N x 4 x h x w in
    cells, those of the end-to-end head where it has one. Raises StageError when Ultralytics does not load.
    """
    tasks = _library("nn.tasks")
    kind = tasks.ClassificationModel if "-cls" in options.model else tasks.DetectionModel
    net = kind(options.model, ch=channels, nc=classes, verbose=False)
    _split(net)
    return _classifier(net) if "-cls" in options.model else _detector(net, options)


def _classifier(net: "nn.Module") -> "nn.Module":
    from torch import nn

    attention = _library("nn.modules.block").Attention

    class Classifier(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        @property
        def features(self) -> nn.Module:
            return self.net.model[-2]

        @property
        def head(self) -> nn.Module:
            return self.net.model[-1].linear

        @property
        def unprunable(self) -> list[nn.Module]:  # its heads are cut by number of channels
            return [m for m in self.net.modules() if isinstance(m, attention)]

        def forward(self, x: Any) -> Any:
            outputs = self.net(x)
            return outputs[1] if isinstance(outputs, tuple) else outputs  # in eval mode: probabilities, logits

    return Classifier()


def _detector(net: "nn.Module", options: Options) -> "nn.Module":
    from torch import nn

    attention = _library("nn.modules.block").Attention

    end_to_end = hasattr(net.model[-1], "one2one_cv2")
    names = tuple(f"{kind}{int(stride)}" for stride in net.stride for kind in ("scores", "boxes"))

    class Detector(nn.Module):  # type: ignore[misc]
        outputs = names

        def __init__(self) -> None:
            super().__init__()
            self.net = net
            # How `tasks/detection/decode.py` reads the maps. Boxes of a head that is not end to end overlap.
            self.postprocess = {"least": LEAST_SCORE, "overlap": None if end_to_end else OVERLAP}

        @property
        def head(self) -> nn.Module:
            return self.net.model[-1]

        @property
        def unprunable(self) -> list[nn.Module]:
            return [m for m in self.net.modules() if isinstance(m, attention)]

        def neck(self, x: Any) -> list[Any]:
            """Return what the head takes; the walk is that of `BaseModel._predict_once`."""
            kept: list[Any] = []
            for layer in self.net.model[:-1]:
                if layer.f != -1:
                    x = kept[layer.f] if isinstance(layer.f, int) else [x if j == -1 else kept[j] for j in layer.f]
                x = layer(x)
                kept.append(x if layer.i in self.net.save else None)
            return [kept[j] for j in self.head.f]

        def maps(self, x: list[Any], which: str) -> list[Any]:
            head, found = self.head, []
            boxes, scores = (getattr(head, which)[f"{part}_head"] for part in ("box", "cls"))
            for level, map_ in enumerate(x):
                sides = boxes[level](map_)
                if head.reg_max > 1:
                    flat = head.dfl(sides.flatten(2))
                    sides = flat.unflatten(2, sides.shape[2:])
                found += [scores[level](map_), sides]
            return found

        def every_output(self, x: Any) -> list[Any]:
            """Return the maps of both heads, for the graph of what is pruned together."""
            neck = self.neck(x)
            return self.maps(neck, "one2many") + (self.maps(neck, "one2one") if end_to_end else [])

        def forward(self, x: Any) -> Any:
            return tuple(self.maps(self.neck(x), "one2one" if end_to_end else "one2many"))

        def fit(self, name: str, setup: "Setup", schedule: "Schedule", teacher: Any = None, features: float = 0) -> Any:
            return _fit(self, name, setup, schedule, options.trainer, teacher, features)

    return Detector()


def _fit(
    model: Any, name: str, setup: "Setup", schedule: "Schedule", more: dict[str, Any], teacher: Any, features: float
) -> list[dict[str, float]]:
    """Train a detector in place with Ultralytics' own trainer, and return its curves as `training.fit` does.

    The weights are the moving average at the end. Under a teacher its own distillation of features is used. Nothing of
    the trainer is kept: it writes no checkpoint, which would be a pickle, so that a run that is cut off begins anew.
    Raises StageError when the images are not prepared as Ultralytics prepares them.
    """
    trainers = _library("models.yolo.detect.train")
    distilling = _library("nn.distill_model")
    size = setup.preprocess
    if (size.resize, size.height, set(size.mean), set(size.std)) != ("letterbox", size.width, {0.0}, {1.0}):
        raise StageError(
            "params.yaml: input: Ultralytics trains on square letterboxed images of 0 to 1; "
            "set height = width, resize: letterbox, and mean 0 and std 1 for each channel"
        )
    if teacher is not None and not hasattr(teacher, "net"):
        raise StageError("params.yaml: teacher.family: Ultralytics distills from its own models; name one")
    curves: list[dict[str, float]] = []

    class Trainer(trainers.DetectionTrainer):  # type: ignore[misc, name-defined]
        def save_model(self) -> bool:
            return False

        def final_eval(self) -> None:
            pass

    def note(trainer: Any) -> None:
        curves.append(
            {
                "epoch": trainer.epoch + 1,
                "loss": round(float(sum(trainer.tloss.values())), 6),
                "lr": round(trainer.optimizer.param_groups[0]["lr"], 9),
                "val_metric": round(float(trainer.metrics["metrics/mAP50-95(B)"]), 6),
            }
        )

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            overrides={
                "model": "none.yaml",
                "data": _write(setup, Path(folder)),
                "project": folder,
                "name": name,
                "imgsz": size.height,
                "epochs": schedule.epochs,
                "batch": schedule.batch,
                "optimizer": "AdamW",
                "lr0": schedule.lr,
                "lrf": 0.0,
                "cos_lr": True,
                "weight_decay": schedule.weight_decay,
                "warmup_epochs": schedule.warmup * schedule.epochs,
                "degrees": setup.augment.rotate,
                "translate": setup.augment.shift,
                "scale": setup.augment.scale,
                "fliplr": 0.5 if setup.augment.flip else 0.0,
                "seed": setup.seed,
                "deterministic": True,
                "plots": False,
                "amp": False,
                "device": "cpu",
                "patience": schedule.epochs,
                "dis": features,
                **more,
            }
        )
        trainer.model = model.net
        model.net.args, model.net.nc, model.net.names = trainer.args, trainer.data["nc"], trainer.data["names"]
        if teacher is not None and features:
            teacher.net.args = trainer.args
            trainer.model = distilling.DistillationModel(teacher.net, model.net)
        trainer.add_callback("on_fit_epoch_end", note)
        trainer.train()
        averaged = trainer.ema.ema
        if hasattr(trainer.model, "student_model"):
            trainer.model._remove_feature_hooks()  # they hold tensors of the last batch
        model.net.criterion = None
        model.net.load_state_dict(getattr(averaged, "student_model", averaged).state_dict())
    model.eval().requires_grad_(True)
    return curves


def _write(setup: "Setup", folder: Path) -> str:
    """Write train and val in the layout that Ultralytics reads, and return its description."""
    import yaml
    from PIL import Image

    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for row in setup.dataset.rows(split).tolist():
            pixels, boxes = setup.dataset.image(row), setup.dataset.boxes(row)
            if pixels.dtype.name != "uint8" or pixels.shape[2] != 3:
                raise StageError("data: Ultralytics trains on images of 3 channels of 8 bits; take another family")
            Image.fromarray(pixels).save(folder / "images" / split / f"{row:08}.png", compress_level=1)
            edges = [pixels.shape[1], pixels.shape[0]] * 2
            lines = [
                " ".join(
                    [
                        str(int(label)),
                        *(f"{v / e:.7f}" for v, e in zip((x + w / 2, y + h / 2, w, h), edges, strict=True)),
                    ]
                )
                for x, y, w, h, label in boxes.tolist()
            ]
            (folder / "labels" / split / f"{row:08}.txt").write_text("\n".join(lines), encoding="utf-8")
    file = folder / "data.yaml"
    names = dict(enumerate(setup.dataset.classes))
    file.write_text(
        yaml.safe_dump({"path": str(folder), "train": "images/train", "val": "images/val", "names": names}),
        encoding="utf-8",
    )
    return str(file)


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
