"""The training loop that train, distill and prune share: seeded, checkpointed, resumed exactly."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines import models, processes, tasks, workers
from pipelines.data import Dataset, Input
from pipelines.files import sha256_bytes, write_file
from pipelines.params import Section, section, value
from pipelines.preprocess import Preprocess
from pipelines.stage import StageError

if TYPE_CHECKING:
    import torch
    from torch import nn

CHECKPOINTS = Path(".quantmill/checkpoints")
CACHE_BYTES = 2 * 2**30  # datasets whose resized pixels fit are decoded once
LOADER_PROCESSES = 2

Loss = Callable[["nn.Module", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


class Schedule(Section):
    """How long and how fast: AdamW, linear warm-up, then a cosine to zero."""

    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup: float = Field(ge=0, lt=1, description="Share of the steps over which the learning rate rises.")


class Augment(Section):
    """Random changes of the training images, each drawn per image."""

    rotate: float = Field(ge=0, le=180, description="Degrees, both ways.")
    shift: float = Field(ge=0, lt=1, description="Share of the width and height, both ways.")
    scale: float = Field(ge=0, lt=1, description="Share, larger and smaller.")
    flip: bool = Field(description="Mirror half of the images left to right.")


@dataclass(frozen=True)
class Setup:
    """What every training stage needs: data, preprocessing, task, augmentation, seed."""

    dataset: Dataset
    preprocess: Preprocess
    task: ModuleType
    augment: Augment
    seed: int

    def spec(self, model: dict[str, Any]) -> dict[str, Any]:
        """Return what is written beside the weights of a model, enough to build and feed it again."""
        return {
            "model": model,
            "task": self.dataset.info["task"],
            "channels": self.dataset.info["channels"],
            "classes": self.dataset.classes,
            "preprocess": self.preprocess.to_dict(),
        }

    def build(self, key: str) -> tuple["nn.Module", dict[str, Any]]:
        """Return the untrained model declared under `key`, and its spec.

        Raises StageError when it does not take the images, or does not give what the task wants.
        """
        import torch

        spec = self.spec(value(key))
        model = models.build(spec["model"], spec["channels"], len(spec["classes"]), key)
        images = torch.zeros(2, self.preprocess.channels, self.preprocess.height, self.preprocess.width)
        try:
            with torch.inference_mode():
                outputs = model.eval()(images)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            took = " x ".join(map(str, images.shape[1:]))
            reason = " ".join(f"{error}".split())[:200]
            raise StageError(f"params.yaml: {key}: does not take images of {took}: {reason}") from None
        models.start(model, spec, key)
        if wrong := self.task.unfit(outputs, len(spec["classes"])):
            raise StageError(f"params.yaml: {key}: {wrong}")
        return model, spec


def prepare(data: Path) -> Setup:
    """Read the shared sections of `params.yaml`, and make torch deterministic with `threads` threads."""
    import torch

    seed = value("seed")
    torch.set_num_threads(value("threads"))
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    dataset = Dataset(data)
    return Setup(
        dataset,
        dataset.preprocess(section("input", Input)),
        tasks.load(value("task")),
        section("augment", Augment),
        seed,
    )


def fit(name: str, model: "nn.Module", setup: Setup, schedule: Schedule, loss: Loss) -> list[dict[str, float]]:
    """Train `model` in place and return its curves: per epoch the loss, the learning rate and the metric on `val`.

    The share of the training time that was spent waiting for images is shown, and printed at the end.

    After each epoch a checkpoint is left in CHECKPOINTS, under a name made of everything that decides the result.
    A run that finds one goes on from it and ends in the same weights as one that was never stopped: the order of
    the images and their augmentation depend on the seed and the epoch alone. At the end it is removed.

    Under `torchrun` each process takes its part of every batch, and batch normalization sees that part; the first
    process writes, and this function returns in it alone: the others end here. Raises StageError when only some
    of them find the checkpoint. A model with a `fit` of its own is trained by that.
    """
    import torch
    from tqdm import tqdm

    if hasattr(model, "fit"):
        own: list[dict[str, float]] = model.fit(name, setup, schedule)
        return own
    team = processes.join()
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    train, val = setup.dataset.rows("train"), setup.dataset.rows("val")
    pixels, truth = Pixels(setup), setup.task.truth(setup.dataset, val, setup.preprocess)
    checkpoint = CHECKPOINTS / f"{name}-{_key(model, setup, schedule, team.size)}.safetensors"
    curves = _resume(checkpoint, model, optimizer)
    team.agree(len(curves), f"{checkpoint}: not on every machine; share its folder between them, or remove it")
    forward = team.parallel(model, loss)
    steps = math.ceil(len(train) / schedule.batch)
    spent: dict[str, float] = defaultdict(float)  # seconds
    with tqdm(
        total=schedule.epochs, initial=len(curves), desc=name, unit=" epochs", mininterval=1, disable=team.rank > 0
    ) as bar:
        for epoch in range(len(curves), schedule.epochs):
            generator = torch.Generator().manual_seed(setup.seed * 1_000_003 + epoch)
            torch.manual_seed(setup.seed * 1_000_003 + epoch)
            order = train[torch.randperm(len(train), generator=generator).numpy()]
            if team.rank:  # each process draws other augmentations
                generator.manual_seed((setup.seed * 1_000_003 + epoch) * 4_093 + team.rank)
            model.train()
            total, seen = 0.0, 0
            begin, waited = time.perf_counter(), pixels.waited
            for step, (rows, images) in enumerate(pixels.batches(order, schedule.batch, team.share)):
                rate = _rate(schedule, epoch * steps + step, schedule.epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                matrices = draw(images, setup.augment, generator)
                inputs = warp(images, matrices).contiguous(memory_format=torch.channels_last)
                labels = setup.task.targets(setup.dataset, rows, setup.preprocess, matrices)
                optimizer.zero_grad()
                value = forward(inputs, labels)
                value.backward()
                optimizer.step()
                total += float(value.detach()) * len(rows)
                seen += len(rows)
            spent["waiting"] += pixels.waited - waited
            spent["training"] += time.perf_counter() - begin
            score = setup.task.scorer(predict(model, pixels, val), truth)(None)
            curves.append(
                {
                    "epoch": epoch + 1,
                    "loss": round(team.total(total) / team.total(seen), 6),
                    "lr": round(rate, 9),
                    "val_metric": round(score, 6),
                }
            )
            if team.rank == 0:
                _save(checkpoint, model, optimizer, curves)
            shown = {k: v for k, v in curves[-1].items() if k != "epoch"}
            bar.set_postfix({**shown, "waiting": _share(spent)}, refresh=False)
            bar.update()
    team.leave()
    checkpoint.unlink()
    if spent:
        print(f"{name}: {_share(spent)} of the training time spent waiting for images")
    return curves


def _share(spent: dict[str, float]) -> str:
    return f"{spent['waiting'] / spent['training']:.1%}"


def predict(model: "nn.Module", pixels: "Pixels", rows: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Return the model's outputs for some rows, as a list of arrays N x ..., in eval mode."""
    import torch

    model.eval()
    with torch.inference_mode():
        found = [model(images.contiguous(memory_format=torch.channels_last)) for _, images in pixels.batches(rows, 256)]
    several = [one if isinstance(one, tuple) else (one,) for one in found]
    return [torch.cat(output).numpy() for output in zip(*several, strict=True)]


def write_curves(path: Path, curves: list[dict[str, float]]) -> None:
    """Write curves as CSV, one row per epoch."""
    with write_file(path) as part:
        lines = [",".join(curves[0]), *(",".join(str(v) for v in row.values()) for row in curves)]
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _all(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows


class Pixels:
    """Gives batches of normalized images. Resized pixels are kept where they fit in CACHE_BYTES.

    `waited` are the seconds that whoever takes batches has waited for them.
    """

    def __init__(self, setup: Setup) -> None:
        self.dataset = setup.dataset
        self.preprocess = setup.preprocess
        image = setup.preprocess.channels * setup.preprocess.height * setup.preprocess.width
        size = image * len(self.dataset.column("path")) * self.dataset.info["bits"] // 8
        self.cache: dict[int, NDArray[Any]] | None = {} if size <= CACHE_BYTES else None
        self.waited = 0.0

    def __getitem__(self, row: int) -> NDArray[Any]:
        """Return the resized pixels of one row, H x W x C."""
        if self.cache is not None and row in self.cache:
            return self.cache[row]
        return self.preprocess.pixels(self.dataset.image(row))

    def batches(
        self, rows: NDArray[np.int64], size: int, share: Callable[[NDArray[np.int64]], NDArray[np.int64]] = _all
    ) -> Iterator[tuple[NDArray[np.int64], "torch.Tensor"]]:
        """Yield rows and their images, normalized, float32 N x C x H x W, `size` at a time, or what `share` leaves.

        Images that are not kept are decoded and resized by LOADER_PROCESSES other processes, ahead of time; under
        `torchrun` those that will be kept are not, since each training process has threads that no fork should cut.
        """
        import torch
        from torch import distributed
        from torch.utils.data import DataLoader

        begin = time.perf_counter()
        scale, mean, std = (
            torch.tensor(v, dtype=torch.float32).reshape(1, -1, 1, 1)
            for v in (self.preprocess.full_scale, self.preprocess.mean, self.preprocess.std)
        )
        chunks = [share(rows[i : i + size]) for i in range(0, len(rows), size)]
        at_hand = self.cache is not None and all(row in self.cache for chunk in chunks for row in chunk.tolist())
        stacks = DataLoader(
            _Stacks(self, chunks),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=0 if at_hand or (self.cache is not None and distributed.is_initialized()) else LOADER_PROCESSES,
            worker_init_fn=workers.keep_memory,
        )
        for chunk, stack in zip(chunks, stacks, strict=True):
            if self.cache is not None and not at_hand:
                self.cache.update(zip(chunk.tolist(), stack.numpy().copy(), strict=True))
            images = (stack.permute(0, 3, 1, 2).float() / scale - mean) / std
            self.waited += time.perf_counter() - begin
            yield chunk, images
            begin = time.perf_counter()


@dataclass(frozen=True)
class _Stacks:
    """The stacked pixels of each chunk of rows, N x H x W x C, for a DataLoader."""

    pixels: Pixels
    chunks: list[NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.stack([self.pixels[row] for row in self.chunks[number].tolist()]))


def draw(images: "torch.Tensor", options: Augment, generator: "torch.Generator") -> "torch.Tensor":
    """Return for each of N images how it is rotated, shifted, scaled and mirrored, drawn at random: N x 2 x 3.

    A matrix leads from a place in the changed image to the place that is shown there, both -1 to 1.
    """
    import torch

    count, _, height, width = images.shape

    def drawn(reach: float) -> "torch.Tensor":
        return (torch.rand(count, generator=generator) * 2 - 1) * reach

    angle, scale = drawn(math.radians(options.rotate)), 1 + drawn(options.scale)
    right, down = drawn(2 * options.shift), drawn(2 * options.shift)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if options.flip else torch.ones(count)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    aspect = height / width
    return torch.stack(
        [torch.stack([cos * mirror, -sin * aspect, right], 1), torch.stack([sin * mirror / aspect, cos, down], 1)], 1
    )


def warp(images: "torch.Tensor", matrices: "torch.Tensor") -> "torch.Tensor":
    """Return images N x C x H x W changed as `draw` says; borders are repeated."""
    from torch.nn import functional

    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _rate(schedule: Schedule, step: int, steps: int) -> float:
    warm = max(1, round(schedule.warmup * steps))
    if step < warm:
        return schedule.lr * (step + 1) / warm
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _key(model: "nn.Module", setup: Setup, schedule: Schedule, size: int = 1) -> str:
    """Hash what decides the result: data, seed, settings, processes and the weights at the start."""
    weights = b"".join(v.detach().numpy().tobytes() for v in model.state_dict().values())
    index = (setup.dataset.folder / "index.parquet").read_bytes()
    settings = [schedule.model_dump(), setup.augment.model_dump(), setup.preprocess.to_dict(), setup.seed]
    if size > 1:
        settings.append(size)
    return sha256_bytes(weights + index + json.dumps(settings, sort_keys=True).encode())[:16]


def _save(path: Path, model: "nn.Module", optimizer: "torch.optim.Optimizer", curves: list[dict[str, float]]) -> None:
    from safetensors.torch import save_file

    tensors = {f"model/{k}": v.contiguous() for k, v in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{k}": v.contiguous() for k, v in state.items()}
    with write_file(path) as part:
        save_file(tensors, part, {"curves": json.dumps(curves)})


def _resume(path: Path, model: "nn.Module", optimizer: "torch.optim.Optimizer") -> list[dict[str, float]]:
    """Put the checkpoint's state into model and optimizer; return its curves, or none without a checkpoint."""
    from safetensors import safe_open

    if not path.is_file():
        return []
    with safe_open(path, "pt") as file:
        curves: list[dict[str, float]] = json.loads(file.metadata()["curves"])
        weights, state = {}, optimizer.state_dict()
        for key in file.keys():  # noqa: SIM118 - not a mapping
            kind, _, name = key.partition("/")
            if kind == "model":
                weights[name] = file.get_tensor(key)
            else:
                number, _, field = name.partition("/")
                state["state"].setdefault(int(number), {})[field] = file.get_tensor(key)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    print(f"going on after epoch {len(curves)}, from {path}")
    return curves
