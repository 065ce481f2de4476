"""Brings the bundle of a version to a device: fetched, verified, and put in its place whole."""

import tempfile
from pathlib import Path

from pipelines.files import copy_file, tree, write_folder
from pipelines.stage import StageError
from registry import bundles, evidence, promote
from registry.reconcile import PRODUCTION


def pull(project: str, target: str, version: str = PRODUCTION, out: Path | None = None) -> Path:
    """Put the bundle of `PROJECT.TARGET` at `version` (a number or an alias) into the folder `out`, and return it.

    Raises StageError when the bundle does not verify or did not pass; `out` is then as it was.
    """
    model = f"{project}.{target}"
    out = out or Path(model)
    if out.exists() and not (out / "SHA256SUMS").is_file():
        raise StageError(f"{out}: exists and is no bundle; name another folder with --out")
    client = promote.connect()
    number = promote.number(client, model, version)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            fetched = Path(scratch) / "bundle"
            bundles.fetch(client, str(client.get_model_version(model, number).source), fetched)
            evidence.promotable(evidence.verify(fetched, model))
            with write_folder(out) as part:
                for path in tree(fetched):
                    copy_file(path, part / path.relative_to(fetched))
    except StageError as error:
        raise StageError(f"{model} version {number}: {error}") from None
    return out
