"""Lets MLflow run a bundle: `mlflow.pyfunc.load_model("models:/NAME@production")` and `mlflow models serve`."""

from pathlib import Path
from typing import Any

from registry import evidence


class Served:
    """A verified bundle behind MLflow's `predict`."""

    def __init__(self, folder: Path) -> None:
        self.model = evidence.open_model(folder)

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> Any:
        """Return label, class and score for each row's `image`, the bytes of an image file."""
        import pandas

        from pipelines.images import decode_image

        return pandas.DataFrame([self.model([decode_image(data)])[0] for data in frame["image"]])


def _load_pyfunc(path: str) -> Served:
    """Open the bundle in `path`, the entry point that MLflow calls. Raises StageError when it does not verify."""
    return Served(Path(path))
