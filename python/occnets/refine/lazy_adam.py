# SPDX-License-Identifier: MIT
"""Adam for feature maps of which a step touches a small part."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class LazyAdam:
    """Adam (Kingma and Ba 2015, torch's defaults) that leaves alone what has no gradient in a step.

    A cell whose channels all have gradient zero keeps its value and its moments, and its bias correction counts the
    steps that touched it. For maps with a million cells, of which thousands are read, a step costs half of the dense
    one.

    Args:
        maps: leaves (B, C, ...) or (B, C); channels-last memory is fastest.
        lr: learning rate, in ``param_groups`` as torch has it.
    """

    def __init__(self, maps: Iterable[Tensor], lr: float) -> None:
        self.maps = list(maps)
        self.param_groups = [{"lr": lr}]
        self.states = [self._zeros(values) for values in self.maps]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for values in self.maps:
            values.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the cells that have a gradient."""
        lr = self.param_groups[0]["lr"]
        for values, (first, second, count) in zip(self.maps, self.states, strict=True):
            if values.grad is None:
                continue
            slopes = _rows(values.grad)
            touched = slopes.any(dim=1).nonzero()[:, 0]
            slope = slopes[touched]
            mean = first[touched].lerp_(slope, 1.0 - _BETAS[0])
            square = second[touched].mul_(_BETAS[1]).addcmul_(slope, slope, value=1.0 - _BETAS[1])
            seen = count[touched] + 1.0
            first[touched], second[touched], count[touched] = mean, square, seen
            scale = (square / (1.0 - _BETAS[1] ** seen)).sqrt_().add_(_EPSILON)
            change = mean / (1.0 - _BETAS[0] ** seen) / scale * lr
            rows = _rows(values)
            rows[touched] -= change
            if rows.data_ptr() != values.data_ptr():  # the memory was not channels-last, so that rows are a copy
                values.copy_(rows.view(*values.movedim(1, -1).shape).movedim(-1, 1))

    @staticmethod
    def _zeros(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(values.detach())
        return torch.zeros_like(rows), torch.zeros_like(rows), rows.new_zeros(len(rows), 1)


def _rows(values: Tensor) -> Tensor:
    """(cells, C): a view of channels-last memory, else a copy."""
    last = values.movedim(1, -1)
    return last.reshape(-1, last.shape[-1])
