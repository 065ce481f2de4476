"""Training in two processes by torchrun, over gloo: the gradients of the whole batch, one writer, the same bytes."""

import sys

import numpy as np
import pytest

from pipelines.files import sha256_tree, tree
from pipelines.processes import Processes
from tests import line

GRADIENTS = """
import torch
from pipelines import processes
team = processes.join()
torch.manual_seed(0)
model, inputs, truth = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randn(8, 2)
loss = lambda net, x, y: (net(x) - y).pow(2).mean()
wanted = torch.autograd.grad(loss(model, inputs, truth), model.weight)[0]
rows = team.share(torch.arange(8).numpy())
step = team.parallel(model, loss)
step(inputs[rows], truth[rows]).backward()
assert team.size == 2 and len(rows) == 4 and torch.allclose(model.weight.grad, wanted)
assert team.total(team.rank + 1) == 3
try:
    team.agree(team.rank, "they differ")
except processes.StageError:
    team.leave()
    print("first")
"""


def torchrun(root, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    return line.run(root, *command, OMP_NUM_THREADS="1")


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 2), (1, 2), (2, 3), (5, 1)])
def test_parts_of_a_batch_are_of_one_size_and_cover_it(count, size):
    rows = np.arange(count)
    parts = [Processes(rank, size).share(rows) for rank in range(size)]
    assert len({len(p) for p in parts}) == 1 and len(parts[0]) == -(-count // size)
    assert set(np.concatenate(parts)) == set(rows)
    assert size > 1 or list(parts[0]) == list(rows)


@pytest.mark.slow
def test_gradients_are_those_of_the_whole_batch_and_one_process_goes_on(tmp_path):
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    done = line.run(
        line.ROOT, sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(tmp_path / "gradients.py"), OMP_NUM_THREADS="1", PYTHONPATH=str(line.ROOT),
    )  # fmt: skip
    assert done.stdout.split() == ["first"]


@pytest.mark.slow
def test_a_teacher_is_trained_by_two_processes_the_same_twice(tmp_path):
    root = line.copy(tmp_path)
    line.run(root, sys.executable, "-m", "pipelines.prepare", "build/data")
    for out in ("build/one", "build/two"):
        torchrun(root, "-m", "pipelines.train", "build/data", out)
    assert [p.name for p in tree(root / "build/one")] == ["curves.csv", "model.safetensors"]
    assert sha256_tree(root / "build/one") == sha256_tree(root / "build/two")
    last = (root / "build/one/curves.csv").read_text().splitlines()[-1].split(",")
    assert last[0] == "2" and float(last[-1]) > 0.5
    assert not list((root / ".quantmill/checkpoints").iterdir())
