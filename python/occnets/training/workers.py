# SPDX-License-Identifier: MIT
"""Data parallelism inside one process: threads share the weights, each takes a part of the batch.

Each part runs on its own few cores from the first layer to its gradients, so that threads wait for each other once a
step instead of at the end of every operator. On two cores that are shared with other work this takes 1.13 s where
two-threaded operators take 1.58 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from occnets.training.module import OccupancyModule

Batch = dict[str, Tensor]


def split(batch: Batch, parts: int) -> list[Batch]:
    """Near-equal parts of a batch along its first axis, at most one a sample."""
    count = len(next(iter(batch.values())))
    chunks = {name: value.tensor_split(min(parts, count)) for name, value in batch.items()}
    return [dict(zip(chunks, values, strict=True)) for values in zip(*chunks.values(), strict=True)]


def needs_whole_batch(model: nn.Module) -> bool:
    """Whether parts of a batch cannot be trained side by side.

    Batch norms measure the whole batch and write their statistics; modules with ``random_in_training`` draw from the
    process's one stream of random numbers, whose order would depend on the threads.
    """
    return any(isinstance(part, _BatchNorm) or getattr(part, "random_in_training", False) for part in model.modules())


class Workers:
    """Computes losses and gradients of batches, on one thread per part where the device is a CPU.

    Args:
        module: gives ``piece_loss``, the parameters, the device and the configuration.
    """

    def __init__(self, module: OccupancyModule) -> None:
        self._module = module
        self.parameters = [p for p in module.model.parameters() if p.requires_grad]
        threads = torch.get_num_threads()
        divisible = module.device.type == "cpu" and not needs_whole_batch(module.model)
        self.count = min(threads, module.config.batch.size) if divisible else 1
        self._pool: ThreadPoolExecutor | None = None
        if self.count > 1:
            # The number of threads of an operator belongs to the Python thread that calls it.
            self._pool = ThreadPoolExecutor(
                self.count, "occnets-train", initializer=torch.set_num_threads, initargs=(threads // self.count,)
            )

    def _piece(self, piece: Batch, weight: float) -> tuple[Tensor, Sequence[Tensor]]:
        loss = self._module.piece_loss(piece) * weight
        return loss.detach(), torch.autograd.grad(loss, self.parameters)

    def gradients(self, batches: Sequence[Batch]) -> tuple[Tensor, list[Tensor]]:
        """Mean loss over batches and its gradients by parameter; the order of the sums is fixed."""
        results: Iterable[tuple[Tensor, Sequence[Tensor]]]
        work = []
        for batch in batches:
            size = len(batch["inputs"]) * len(batches)
            work += [(piece, len(piece["inputs"]) / size) for piece in split(batch, self.count)]
        if self._pool is None:
            results = (self._piece(*item) for item in work)
        else:
            results = self._pool.map(lambda item: self._piece(*item), work)
        losses: list[Tensor] = []
        total: list[Tensor] | None = None
        for loss, gradients in results:
            losses.append(loss)
            if total is None:
                total = list(gradients)
            else:
                torch._foreach_add_(total, list(gradients))
        assert total is not None
        return torch.stack(losses).sum(), total

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
