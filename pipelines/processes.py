"""Training in several processes, as `torchrun` starts them. In one process nothing here does anything."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.stage import StageError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Processes:
    """How many there are, and which one this is. The first, of rank 0, alone writes."""

    rank: int
    size: int

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's part of a batch; parts are of one size, filled up from the start of the batch.

        Source: torch.utils.data.DistributedSampler, which does the same over a whole epoch.
        """
        return np.resize(rows, -(-len(rows) // self.size) * self.size)[self.rank :: self.size]

    def parallel(
        self, model: "nn.Module", loss: Callable[..., "torch.Tensor"]
    ) -> Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]:
        """Return the loss of `model`, given inputs and truth, whose gradients are the mean over all processes."""
        if self.size == 1:
            return lambda inputs, truth: loss(model, inputs, truth)
        from torch import nn

        class Step(nn.Module):  # type: ignore[misc]
            """The loss as a module: DistributedDataParallel sees the forward pass, and hooks on layers still work."""

            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, inputs: "torch.Tensor", truth: "torch.Tensor") -> "torch.Tensor":
                return loss(self.model, inputs, truth)

        wrapped: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = nn.parallel.DistributedDataParallel(Step())
        return wrapped

    def total(self, value: float) -> float:
        """Return the sum of a number over all processes."""
        return sum(self._gather(value)) if self.size > 1 else value

    def agree(self, value: int, message: str) -> None:
        """Raise StageError with `message` where the processes hold different numbers."""
        if self.size > 1 and len(set(self._gather(value))) > 1:
            raise StageError(message)

    def leave(self) -> None:
        """End every process but the first, when all have come this far."""
        if self.size == 1:
            return
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()
        if self.rank:
            raise SystemExit(0)

    def _gather(self, value: float) -> list[float]:
        import torch
        from torch import distributed

        mine = torch.tensor([value], dtype=torch.float64)
        found: list[Any] = [torch.zeros_like(mine) for _ in range(self.size)]
        distributed.all_gather(found, mine)
        return [float(one) for one in found]


def join() -> Processes:
    """Join the processes that `torchrun` started with this one, over gloo. Without `torchrun`, return this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes(0, 1)
    from torch import distributed

    distributed.init_process_group("gloo")
    return Processes(distributed.get_rank(), size)
