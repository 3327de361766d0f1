# SPDX-License-Identifier: MIT
"""The Lightning module: one occupancy network, its optimiser, its schedule and its averaged weights."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from occnets._optional import optional
from occnets.training.config import TrainConfig
from occnets.training.losses import occupancy_loss
from occnets.training.schedule import AveragedWeights, learning_rate, parameter_groups, progress

lightning = optional("lightning.pytorch", extra="train", why="to train models")


class OccupancyModule(lightning.LightningModule):  # type: ignore[misc]
    """Trains ``model(queries, inputs) -> logits``.

    Args:
        model: the network; called as ``model(queries (B, M, 3), inputs (B, N, 3)) -> (B, M)``.
        config: the run.

    Attributes:
        average: the averaged weights.
        record: plain values that travel with the checkpoint into the model card: command, hardware, validation.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.average = AveragedWeights(model, config.optimiser.ema_decay)
        self.record: dict[str, Any] = {}
        self._seconds = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Training seconds so far, over all resumed parts."""
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)

    @property
    def done(self) -> float:
        """Fraction of the run that is done, in [0, 1]."""
        return progress(self.config.run, self.trainer.global_step, self.seconds)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over two groups; the learning rate is set before every step."""
        settings = self.config.optimiser
        groups = parameter_groups(self.model.parameters(), settings.weight_decay)
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)

    def on_fit_start(self) -> None:
        """Start the clock of this part of the run."""
        self.average.to(self.device)
        self._started = time.monotonic()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the coming step."""
        rate = learning_rate(self.config.optimiser, self.trainer.global_step, self.done)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        logits = self.model(batch["queries"], batch["inputs"])
        settings = self.config.optimiser
        return occupancy_loss(
            logits, batch["occupied"], reduction=settings.reduction, positive_weight=settings.positive_weight
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update the averaged weights."""
        super().optimizer_step(*args, **kwargs)
        self.average.update()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's configuration, clock and averaged weights, all of plain types."""
        checkpoint["occnets"] = {
            "config": self.config.to_dict(),
            "seconds": self.seconds,
            "step": self.trainer.global_step,
            "shapes": len(self.trainer.datamodule.source),
            "average": self.average.state_dict(),
            "record": self.record,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` added."""
        own = checkpoint["occnets"]
        self._seconds = float(own["seconds"])
        self.average.load_state_dict(own["average"])
        self.record = {**own["record"], **self.record}
