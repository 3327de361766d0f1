# SPDX-License-Identifier: MIT
"""Learning rate and averaged weights as functions of progress."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from occnets.training.config import OptimiserConfig, RunConfig


def progress(run: RunConfig, step: int, seconds: float) -> float:
    """Fraction of the run that is done, in [0, 1]: the larger of its share of steps and of minutes.

    Following the clock lets a run of a given length end with a fully decayed learning rate on any machine.
    """
    by_steps = step / run.max_steps if run.max_steps else 0.0
    by_time = seconds / (60.0 * run.max_minutes) if run.max_minutes else 0.0
    return min(1.0, max(by_steps, by_time))


def learning_rate(config: OptimiserConfig, step: int, done: float) -> float:
    """Linear warm-up in steps, then half a cosine in ``done`` (Loshchilov & Hutter 2017, eq. 5, one period)."""
    span = config.learning_rate - config.final_learning_rate
    decayed = config.final_learning_rate + span * 0.5 * (1.0 + math.cos(math.pi * done))
    return decayed * min(1.0, (step + 1) / max(1, config.warmup_steps))


class AveragedWeights:
    """Exponential moving average of the parameters of a model, and of its running statistics.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` so that the random start is forgotten early.

    Args:
        model: the model to follow.
        decay: decay after the warm-up, in [0, 1); 0 copies the weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        # Statistics of batch norms belong to the weights they were measured with.
        statistics = {name: value for name, value in model.named_buffers() if value.is_floating_point()}
        self._live = {**dict(model.named_parameters()), **statistics}
        self._mean = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's present weights."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        torch._foreach_lerp_(list(self._mean.values()), [p.detach() for p in self._live.values()], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; a second call undoes it."""
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self._mean[name])
            self._mean[name].copy_(kept)

    def to(self, device: torch.device | str) -> None:
        """Move the average to a device."""
        self._mean = {name: value.to(device) for name, value in self._mean.items()}

    def weights(self) -> dict[str, Tensor]:
        """The averaged parameters and statistics by name."""
        return self._mean

    def state_dict(self) -> dict[str, Any]:
        """Average and number of updates."""
        return {"updates": self.updates, "mean": dict(self._mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: the parameters' names differ.
        """
        mean = state["mean"]
        if not isinstance(mean, dict) or set(mean) != set(self._mean):
            raise ValueError("AveragedWeights.load_state_dict: expected the parameters of this model, got others")
        self.updates = int(state["updates"])
        for name, value in mean.items():
            self._mean[name].copy_(value)


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: matrices and kernels decay; biases and norm gains do not."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
