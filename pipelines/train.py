"""Trains the teacher."""

from pathlib import Path

from pipelines import models, training
from pipelines.params import section
from pipelines.stage import run


def main(data: Path, out: Path) -> None:
    """Write `out`: `model.safetensors` and `curves.csv` of the teacher declared in `params.yaml`."""
    setup = training.prepare(data)
    schedule = section("train", training.Schedule)
    model, spec = setup.build("teacher")
    curves = training.fit("train", model, setup, schedule, lambda net, x, y: setup.task.loss(net(x), y))
    models.save(out / "model.safetensors", model, spec)
    training.write_curves(out / "curves.csv", curves)


if __name__ == "__main__":
    run(main)
