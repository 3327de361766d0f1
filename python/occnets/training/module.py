# SPDX-License-Identifier: MIT
"""The Lightning module: one occupancy network, its optimiser, its schedule and its averaged weights."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from occnets._optional import optional
from occnets.training.config import TrainConfig
from occnets.training.fastpath import fast_logits, why_not_fast
from occnets.training.losses import distillation_loss, occupancy_loss
from occnets.training.schedule import AveragedWeights, learning_rate, parameter_groups, progress
from occnets.training.workers import Workers

lightning = optional("lightning.pytorch", extra="train", why="to train models")
_Module: Any = lightning.LightningModule


class OccupancyModule(_Module):  # type: ignore[misc]
    """Trains ``model.training_outputs(queries, inputs, occupancy) -> logits, auxiliary terms``.

    Args:
        model: the network, see :meth:`occnets.models.convonet.ConvolutionalOccupancyNetwork.training_outputs`.
        config: the run.
        precision: ``"fp32"`` or ``"bf16"`` (autocast).
        teacher: a trained network with the same inputs whose logits are imitated; it is not trained and is no part of
            the checkpoints.

    Attributes:
        average: the averaged weights.
        fast: whether steps use ``occnets.training.fastpath``.
        record: plain values that travel with the checkpoint into the model card: command, hardware, validation.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, precision: str = "fp32", teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        # The step is ours: it runs on several threads, which automatic optimisation cannot do.
        self.automatic_optimization = False
        self.precision = precision
        self.model = model
        self.config = config
        self.average = AveragedWeights(model, config.optimiser.ema_decay)
        self.record: dict[str, Any] = {}
        self.fast = why_not_fast(model) is None
        self.similarity = (config.model.get("training") or {}).get("similarity") is not False
        # In a tuple, so that Lightning does not take it for a part of this module.
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)
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
        for teacher in self._teacher:
            teacher.to(self.device)
        self._workers = Workers(self)
        self._started = time.monotonic()

    def on_fit_end(self) -> None:
        """End the worker threads."""
        self._workers.close()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate and the random numbers of the coming step."""
        # Latent codes and noisy choices inside models then depend on the step alone, also after resuming.
        torch.manual_seed((self.config.run.seed << 32) + self.trainer.global_step)
        rate = learning_rate(self.config.optimiser, self.trainer.global_step, self.done)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def logits(self, query: Tensor, inputs: Tensor) -> Tensor:
        """Logits (B, M) of the present weights, on the fast path where the model allows it."""
        if self.fast:
            return fast_logits(self.model, query, inputs)
        result: Tensor = self.model(query, inputs)
        return result

    def training_step(self, batch: list[dict[str, Tensor]], batch_idx: int) -> Tensor:
        """One optimiser step over the batches of ``batch``; returns its loss."""
        settings = self.config.optimiser
        loss, gradients = self._workers.gradients(batch)
        for parameter, gradient in zip(self._workers.parameters, gradients, strict=True):
            parameter.grad = gradient
        if settings.gradient_clip:
            nn.utils.clip_grad_norm_(self._workers.parameters, settings.gradient_clip)
        self.optimizers().step()
        self.average.update()
        return loss

    def piece_loss(self, piece: dict[str, Tensor]) -> Tensor:
        """Loss of a part of a batch, in the run's precision: cross-entropy, imitation, the model's own terms."""
        settings, distill = self.config.optimiser, self.config.distill
        query, inputs, occupied = piece["queries"], piece["inputs"], piece["occupied"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits, terms = self._outputs(query, inputs, occupied)
        loss = occupancy_loss(logits, occupied, reduction=settings.reduction, positive_weight=settings.positive_weight)
        for teacher in self._teacher:
            with torch.no_grad():
                wanted = teacher(query, inputs)
            imitation = distillation_loss(logits, wanted, distill.temperature, reduction=settings.reduction)
            loss = torch.lerp(loss, imitation, distill.weight)
        # The terms' weights are made for a sum over the queries.
        scale = 1.0 if settings.reduction == "sum" else 1.0 / query.shape[1]
        return loss + scale * sum(terms.values())

    def _outputs(self, query: Tensor, inputs: Tensor, occupied: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits and the model's own weighted terms."""
        if self.fast:
            return fast_logits(self.model, query, inputs), {}
        logits, terms = self.model.training_outputs(query, inputs, occupied)
        return logits, {name: value for name, value in terms.items() if name != "similarity" or self.similarity}

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
