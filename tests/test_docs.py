"""The documentation is true: every command in it is run, here or by a test that is named here; links lead somewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from PIL import Image

from tests import line

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    p.relative_to(ROOT).as_posix() for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
)
RUN = ["docs/tutorial.md", *(p for p in PAGES if p.startswith("docs/how-to/"))]
# Commands that another test runs, or that set up what tests set up themselves: pattern -> file, words in it.
ELSEWHERE = {
    r"make demo": (".ci/run", "make demo"),
    r"make check": (".ci/run", "make check"),
    r"make test": (".ci/run", "make test"),
    r"make ui": ("tests/flows/test_ui.py", "flows.ui"),
    r"make schema": ("tests/pipelines/test_check.py", "schema"),
    r"cp examples/detection/params\.yaml params\.yaml && dvc repro": ("tests/test_detection.py", 'example="detection"'),
    r"cp examples/yolo/params\.yaml params\.yaml && dvc repro": ("tests/test_yolo.py", 'example="yolo"'),
    r"pip install 'quantmill\[yolo\]'": ("Makefile", "targets,yolo"),
    r"quantmill init bccd .*": ("tests/pipelines/test_project.py", "test_boxes_make_a_project_with_a_detector"),
    r"python build/bundles/\S+/predict\.py scene\.png": ("tests/test_detection.py", "predict.py"),
    r"docker compose.*": ("tests/flows/test_compose.py", "docker"),
    r"python -m pytest .*": (".ci/run", "make test"),
    r"python -m flows\.build.*": ("tests/flows/test_build.py", "flows.build"),
    r"export .*http://.*": ("tests/registry/conftest.py", "MLFLOW_TRACKING_URI"),
    r"QUANTMILL_ROOT=\$PWD prefect worker start.*": ("tests/flows/test_machines.py", "worker"),
    r"dask .*": ("tests/flows/test_machines.py", "dask"),
    r"prefect config set .*": ("tests/flows/servers.py", "PREFECT_API_DATABASE_CONNECTION_URL"),
    r"mlflow server --app-name quantmill.*": ("tests/registry/conftest.py", "--app-name"),
    r"(\S+=\S+ )?quantmill grant .*": ("tests/registry/test_access.py", "grant"),
    r"(\S+=\S+ )?quantmill ui.*": ("tests/registry/test_access.py", '"ui"'),
    r"quantmill serve .*": ("tests/registry/test_serve.py", '"serve"'),
    r"quantmill reconcile --every .*": ("tests/registry/test_ui.py", '"--every"'),
    r"(\S+=\S+ )?quantmill webhook .*": ("tests/registry/test_ui.py", '"webhook"'),
    r"dvc remote (add|modify) .*": ("tests/test_data_versions.py", "remote"),
    r"dvc import.*": ("tests/test_data_versions.py", "import"),
    r"dvc (push|add photos.*)": ("tests/test_data_versions.py", "dvc"),
    r"dvc get --rev .*|sha256sum reference.parquet": ("tests/test_data_versions.py", "get"),
}
SHORTER = {"minmax,percentile,entropy,mse": "percentile"}  # of a sweep one experiment is enough here
MODEL = """<ir_version: 10, opset_import: ["" : 17]>
somebodys (float[N, 3, 64, 64] images) => (float[N, 3] scores) {
    means = GlobalAveragePool(images)
    scores = Flatten(means)
}"""
# What must have happened before a page. Version 1 is that of the shrunk line, which failed its gates.
BEFORE = {
    "docs/how-to/roll-back.md": [f"quantmill promote digits.openvino-int8 {n}" for n in (2, 3)],
    "docs/how-to/on-the-device.md": ["quantmill promote digits.openvino-int8 candidate"],
}
PROGRAMS = re.compile(
    r"^(\S+=\S+ )*(\(cd \S+ && )?"
    r"(quantmill|dvc|git|python|make|docker|prefect|mlflow|dask|pip|export|cd|mv|sed|sha256sum)(?= )"
)


def commands(page: str) -> list[str]:
    """Return the commands of a page's blocks: `$ ` lines of console blocks, lines of sh blocks and of plain ones."""
    found = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
        if kind not in ("console", "sh", "") or "▶" in block or block.startswith("$ dvc metrics diff HEAD mothy-azan"):
            continue
        for text in block.replace("\\\n", " ").splitlines():
            if kind == "console" and not text.startswith("$ "):
                continue
            text = re.sub(r"\s+#.*", "", text.removeprefix("$ ")).strip()
            if kind == "console" or PROGRAMS.match(text):
                found.append(" ".join(text.split()))
    return found


def elsewhere(command: str) -> bool:
    return any(re.fullmatch(pattern, command) for pattern in ELSEWHERE)


@pytest.mark.parametrize("page", PAGES)
def test_each_command_is_run_by_a_test(page):
    run = {c for other in RUN for c in commands(other)}
    missing = [c for c in commands(page) if page not in RUN and not elsewhere(c) and not set(c.split(" && ")) <= run]
    assert not missing, f"{page}: run these in a test, and name it in ELSEWHERE: {missing}"


@pytest.mark.parametrize(("file", "words"), sorted(set(ELSEWHERE.values())))
def test_the_tests_that_are_named_do_what_is_said(file, words):
    assert words in (ROOT / file).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            heads = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads], f"{page}: {link}"


def test_the_reference_is_up_to_date():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import reference
    finally:
        sys.path.pop(0)
    for name, text in reference.pages().items():
        written = (reference.OUT / name).read_text()
        assert written == reference.NOTE + text.rstrip() + "\n", (
            f"docs/reference/{name} is out of date; run `make docs`"
        )


def passing(compression: float) -> dict:
    """Return params with gates that the shrunk line passes."""
    gates = {"drop_fp32": {"max": 100.0}, "compression": {"min": compression}}
    targets = line.params.read(ROOT / "params.yaml")["targets"]
    return {"targets": {name: {"gates": {g: gates.get(g, {"min": -1e6, "max": 1e6}) for g in entry["gates"]}}
                        for name, entry in targets.items()}}  # fmt: skip


@pytest.fixture(scope="module")
def built(built_line):
    """The tiny line with gates that it passes, two versions registered, and somebody's data beside it."""
    root = built_line[0]
    line.change(root, passing(0.1))
    line.run(root, "dvc", "repro")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    line.run(root, *git, "commit", "-qam", "Gates that it passes")
    line.change(root, passing(0.2))
    line.run(root, "dvc", "repro")
    line.run(root, "git", "checkout", "--", "params.yaml")
    line.run(root, "dvc", "repro")
    shutil.rmtree(root / ".quantmill" / "live", ignore_errors=True)
    rng = np.random.default_rng(0)
    for name in ("nut", "screw", "washer"):
        (root / "photos" / name).mkdir(parents=True)
        for n in range(20):
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(root / "photos" / name / f"{n}.png")
    for name in ("wet", "dry"):
        (root / "fields" / name).mkdir(parents=True)
        for n in range(6):
            np.save(root / "fields" / name / f"{n}.npy", rng.integers(0, 9000, (20, 24, 5), np.uint16))
    Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(root / "photo.png")
    onnx.save(onnx.parser.parse_model(MODEL), root / "model.onnx")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_one_after_another(built, tmp_path, page):
    root = tmp_path / "digits"
    shutil.copytree(built, root, symlinks=True)
    script = ["set -euo pipefail"]
    script += BEFORE.get(page, [])
    for command in commands(page):
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        if page == "docs/how-to/my-images.md" and command in ("dvc repro", "quantmill report"):
            continue  # tests/pipelines/test_project.py runs the whole line in such a project, shrunk
        if not elsewhere(command):
            script += [f"echo {command!r}" if "'" not in command else "echo", command]
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "quantmill").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m registry.cli "$@"\n')
    (bin_folder / "quantmill").chmod(0o755)
    paths = os.pathsep.join([str(bin_folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=root,
        capture_output=True,
        text=True,
        env={**kept, "PATH": paths, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"},
    )
    assert done.returncode == 0, f"{page}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
