"""The search: what is tried, what is taken, and how an operator that INT8 ruins is found and taken back."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines import calibrate, fp32, quantize, runtimes
from pipelines.calibration import Calibration
from pipelines.data import Dataset, Input
from pipelines.files import sha256_file, write_json
from pipelines.search import Tried, bench, choose, front
from pipelines.targets import Bound
from tests import line
from tests.pipelines.test_runtimes import HERE, OPTIONS_OF

EDGE = 16
INT8 = Tried("int8", {"a": 1}, (), 0.2, 0.99, 0.98, 0.02, 0.9, 1.0, 2.0, 100)
FP16 = replace(INT8, precision="fp16", options={}, drop_fp32=0.0, error=1e-4, int8_share=0.0, speedup=1.0)
FP32 = replace(FP16, precision="fp32", error=0.0)
AIM = {"drop_fp32": Bound(max=0.5), "speedup": Bound(min=1.5)}


def test_the_fastest_that_keeps_the_aim_is_taken():
    wrong = replace(INT8, drop_fp32=0.9, speedup=3.0)
    slow = replace(INT8, options={"a": 2}, speedup=1.6)
    best, reason = choose([wrong, slow, INT8, FP16, FP32], AIM)
    assert best == INT8 and reason == "int8: 0.20 points lost, 2.00 times as fast as FP32"


def test_noise_changes_no_choice_and_of_equally_fast_ones_the_most_exact_is_taken():
    exact = replace(INT8, options={"a": 2}, error=0.01)
    for faster in (0.97, 1.0, 1.03):
        pair = [replace(INT8, speedup=2 * faster), exact, FP16, FP32]
        assert choose(pair, AIM)[0].options == exact.options


def test_int8_that_is_slower_than_fp32_gives_way_and_says_so():
    slow = replace(INT8, speedup=0.8)
    best, reason = choose([slow, FP16, FP32], {"drop_fp32": Bound(max=0.5)})
    assert best == FP16 and "taken since INT8 is 0.80 times as fast as FP32" in reason
    assert choose([slow, replace(FP16, speedup=0.5), FP32], {"drop_fp32": Bound(max=0.5)})[0] == FP32


def test_int8_in_name_only_is_not_taken():
    best, reason = choose([replace(INT8, int8_share=0.3), FP16, FP32], {"drop_fp32": Bound(max=0.5)})
    assert best == FP16 and "runs in float: 30% of its multiply-adds" in reason


def test_an_aim_that_nothing_keeps_is_said_with_the_best_trade_off():
    best, reason = choose([replace(INT8, speedup=1.2), FP16, FP32], AIM)
    assert best.speedup == 1.2 and reason.startswith("no scheme keeps the aim; the best trade-off is int8: ")


def test_trade_offs_are_those_that_nothing_beats():
    worse = replace(INT8, error=0.03, speedup=1.9)
    assert front([INT8, worse, FP16]) == [INT8, FP16]


@pytest.mark.parametrize("name", runtimes.names())
@pytest.mark.parametrize("search", ["fast", "thorough"])
def test_every_runtime_that_is_run_here_offers_the_declared_scheme_first_and_others_once(name, search):
    runtime = runtimes.load(name)
    assert hasattr(runtime, "candidates") == (runtime.INSTEAD is None)
    if not runtime.INSTEAD:
        declared = runtime.Options(**OPTIONS_OF[name])
        found = runtime.candidates(declared, search)
        assert found[0] == declared and 1 < len(found) == len(set(found))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Digits, and a trained network of which one branch is a thousand times as large as the other it is joined with."""
    root = line.copy(tmp_path_factory.mktemp("search"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        line.run(root, "python", "-m", "pipelines.prepare", "build/data")
        dataset = Dataset(root / "build/data")
        preprocess = dataset.preprocess(Input(height=EDGE, width=EDGE, resize="stretch"))
        write_json(root / "build/onnx/preprocess.json", preprocess.to_dict())
        write_json(root / "build/onnx/model.json", {"task": "classification"})
        fp32.export(unbalanced(dataset, preprocess), (1, EDGE, EDGE), root / "build/onnx/pruned.onnx")
        calibrate.main(root / "build/data", root / "build/onnx", root / "build/calibration")
    return root


def unbalanced(dataset, preprocess):
    """Train the network, then scale one branch up and its weights in the join down: the function is the same."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Unbalanced(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 16, 3, 2, 1)
            self.even, self.odd = nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(16, 8, 3, 1, 1)
            self.join = nn.Conv2d(16, 16, 1, 2)  # few of the multiply-adds
            self.head = nn.Linear(16 * EDGE, 10)

        def forward(self, images):
            stem = torch.relu(self.stem(images))
            both = torch.cat([torch.relu(self.even(stem)), torch.relu(self.odd(stem))], 1)
            return self.head(torch.relu(self.join(both)).flatten(1))

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, rows = Unbalanced(), dataset.rows("train")
    images = torch.from_numpy(np.stack([preprocess(dataset.image(row)) for row in rows]))
    labels = torch.from_numpy(dataset.labels[rows])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(120):
        part = slice(step * 64 % len(rows), step * 64 % len(rows) + 64)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
    with torch.no_grad():
        model.odd.weight *= 3000
        model.odd.bias *= 3000
        model.join.weight[:, 8:] /= 3000
    return model.eval()


@pytest.mark.slow
# ExecuTorch's fifteen builds would take as long as those of all the others together.
@pytest.mark.parametrize("name", [n for n in HERE if not runtimes.load(n).INSTEAD and n != "executorch"])
def test_the_operator_that_int8_ruins_is_found_and_taken_back(project, monkeypatch, tmp_path, name):
    monkeypatch.chdir(project)
    target, runtime = f"{name}-int8", runtimes.load(name)
    some = runtime.candidates(runtime.Options(**OPTIONS_OF[name]), "fast")[:2]
    monkeypatch.setattr(runtime, "candidates", lambda options, search: some)
    aim = {"drop_fp32": {"max": 1.0}}
    # One rule for both runtimes: a drop within the aim, whatever the speed of so small a network.
    monkeypatch.setattr("pipelines.search.choose", lambda tried, aim: (_best(tried, aim), "the test's choice"))
    declared = {"runtime": name, "precision": "int8", "device": "cpu", "search": "fast", "aim": aim, "gates": {}}
    line.change(project, {"targets": {target: {**declared, "options": OPTIONS_OF[name]}}})
    words = [project / "build/data", project / "build/onnx", project / "build/calibration"]
    quantize.main(target, *words, tmp_path / "out")
    made = json.loads((tmp_path / "out/quantize.json").read_text())
    plain = [t for t in made["tried"] if t["precision"] == "int8" and not t["kept"]]
    assert len(plain) == 2 and min(t["drop_fp32"] for t in plain) > 10, "plain INT8 is ruined"
    (repaired,) = [t for t in made["tried"] if t["kept"]]
    assert repaired["drop_fp32"] <= 1.0 and made["kept"] == repaired["kept"]
    assert any("join" in name for name in made["kept"]) and not any("stem" in name for name in made["kept"])
    worst = made["sensitivity"][0]
    assert worst["drop_fp32"] > 10 and set(worst["operators"]) <= set(made["kept"])
    # The same scheme gives the same bytes, without a search too.
    options = runtime.Options(**repaired["options"])
    frozen = Calibration(*words[::2])
    runtime.quantize(project / "build/onnx/pruned.onnx", frozen, "int8", options, tmp_path / "again", made["kept"])
    for file in runtime.FILES:
        assert sha256_file(tmp_path / "again" / file) == sha256_file(tmp_path / "out" / file)


def _best(tried, aim):
    return next(t for t in tried if t.honest and t.keeps(aim, quality_only=True))


def test_what_cannot_be_built_is_left_out_and_said(project, monkeypatch, capsys):
    from pipelines import search

    monkeypatch.chdir(project)
    runtime = runtimes.load("onnxruntime")
    declared = runtime.Options(**OPTIONS_OF["onnxruntime"])
    frozen = Calibration(project / "build/data", project / "build/calibration")
    source = project / "build/onnx/pruned.onnx"
    with bench("onnxruntime", runtime, "cpu", source, frozen, project / "build/data", project / "build/onnx") as it:
        real = it.build

        def build(precision, options, kept=()):
            if options and options.ranges == "mse":
                raise ValueError("too many bins")
            return real(precision, options, kept)

        monkeypatch.setattr(it, "build", build)
        broken = declared.model_copy(update={"ranges": "mse"})
        found = search.search(it, [("int8", declared), ("int8", broken), ("fp16", None)], print)
    assert [t.precision for t in found] == ["int8", "fp16"]
    assert "left out: too many bins" in capsys.readouterr().out
