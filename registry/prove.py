"""Runs the golden images of a bundle here, in a process of its own: `python -m registry.prove BUNDLE`."""

from pathlib import Path

from pipelines.stage import run
from registry import evidence


def main(bundle: Path) -> None:
    """Verify the bundle, load it and score it. Raises StageError with the reason when it does not do as it must."""
    print(evidence.prove(bundle, evidence.open_model(bundle)))


if __name__ == "__main__":
    run(main)
