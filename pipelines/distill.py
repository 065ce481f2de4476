"""Distills the student from the teacher."""

from pathlib import Path

from pipelines import distillation, models, training
from pipelines.params import Section, section
from pipelines.stage import run


class Distill(Section):
    """Schedule and loss of the distillation."""

    schedule: training.Schedule
    loss: distillation.Weights


def main(data: Path, teacher: Path, out: Path) -> None:
    """Write `out`: `model.safetensors` and `curves.csv` of the student declared in `params.yaml`."""
    setup = training.prepare(data)
    options = section("distill", Distill)
    model, spec = setup.build("student")
    under = models.load(teacher / "model.safetensors")[0]
    curves = distillation.fit("distill", model, under, setup, options.schedule, options.loss)
    models.save(out / "model.safetensors", model, spec)
    training.write_curves(out / "curves.csv", curves)


if __name__ == "__main__":
    run(main)
