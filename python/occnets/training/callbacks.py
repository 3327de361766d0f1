# SPDX-License-Identifier: MIT
"""What happens between steps: logs, checkpoints, validation, clean interruption."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from occnets._optional import optional
from occnets.training.data import ShapeSource, validation_batches
from occnets.training.losses import overlap
from occnets.training.module import OccupancyModule

lightning = optional("lightning.pytorch", extra="train", why="to train models")
_Callback: Any = lightning.Callback

#: Probabilities at which validation measures the overlap.
THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(2, 17))


def report(text: str) -> None:
    """One progress line on stderr."""
    print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def validate(module: OccupancyModule, source: ShapeSource, shapes: int) -> dict[str, float]:
    """Overlap of the averaged weights on held-out shapes.

    Args:
        module: the network and its averaged weights.
        source: the pool.
        shapes: number of held-out shapes.

    Returns:
        ``iou`` at probability 0.5, ``iou_best`` and ``threshold_best`` over ``THRESHOLDS``, ``loss``, and ``shapes``;
        empty without held-out shapes. The overlap is over the pool's queries, of which many lie near the surface,
        and so is lower than over uniform queries.
    """
    thresholds = torch.tensor(THRESHOLDS)
    found: list[Tensor] = []
    losses: list[Tensor] = []
    training = module.training
    module.eval()
    module.average.swap()
    try:
        with torch.inference_mode():
            for batch in validation_batches(source, module.config, shapes):
                batch = {name: value.to(module.device) for name, value in batch.items()}
                logits = module.logits(batch["queries"], batch["inputs"]).float()
                found.append(overlap(logits, batch["occupied"], thresholds)[0].cpu())
                losses.append(torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["occupied"]).cpu())
    finally:
        module.average.swap()
        module.train(training)
    if not found:
        return {}
    mean = torch.stack(found).mean(0)
    best = int(mean.argmax())
    return {
        "iou": float(mean[THRESHOLDS.index(0.5)]),
        "iou_best": float(mean[best]),
        "threshold_best": THRESHOLDS[best],
        "loss": float(torch.stack(losses).mean()),
        "shapes": float(len(found)),
    }


class RunLog(_Callback):  # type: ignore[misc]
    """Progress on stderr and ``metrics.jsonl``, TensorBoard through the trainer's loggers.

    Args:
        folder: where ``metrics.jsonl`` is appended to.
        every: optimiser steps between lines.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path = folder / "metrics.jsonl"
        self.every = every
        self._losses: list[Tensor] = []
        self._since = (0, 0.0)

    def write(self, trainer: Any, values: dict[str, float]) -> None:
        """Append one line of values at the present step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": trainer.global_step, **values}) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in values.items() if k != "step"}, step=trainer.global_step)

    def on_train_start(self, trainer: Any, pl_module: OccupancyModule) -> None:
        """Start counting the speed."""
        self._since = (trainer.global_step, time.monotonic())

    def on_train_batch_end(
        self, trainer: Any, pl_module: OccupancyModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss; every so often write a line."""
        self._losses.append(outputs["loss"].detach())
        steps = trainer.global_step - self._since[0]
        if steps < self.every:
            return
        now = time.monotonic()
        loss = float(torch.stack(self._losses).mean())
        per_step = (now - self._since[1]) / steps
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        values = {
            "loss": loss,
            "learning_rate": rate,
            "seconds_per_step": per_step,
            "seconds": pl_module.seconds,
            "done": pl_module.done,
            "pool": float(len(trainer.datamodule.source)),
        }
        self.write(trainer, values)
        report(
            f"step {trainer.global_step}  {100 * values['done']:.1f} %  loss {loss:.4f}  lr {rate:.2e}  "
            f"{per_step:.3f} s/step  {_clock(pl_module.seconds)}  {len(trainer.datamodule.source)} shapes"
        )
        self._losses = []
        self._since = (trainer.global_step, now)


class Keeper(_Callback):  # type: ignore[misc]
    """Ends the run, saves ``last.ckpt``, validates, and turns SIGINT and SIGTERM into a saved, clean stop.

    Args:
        folder: where ``last.ckpt`` goes.
        run_log: where validation results go.
    """

    def __init__(self, folder: Path, run_log: RunLog) -> None:
        self.path = folder / "last.ckpt"
        self.run_log = run_log
        self.interrupted = 0
        self._saved = self._validated = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            self._give_back()
            raise KeyboardInterrupt
        self.interrupted = number
        report(f"{signal.Signals(number).name}: saving after this step; once more to stop without saving")

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: Any, pl_module: OccupancyModule) -> None:
        """Take over the signals (after Lightning has set its own)."""
        self._saved = self._validated = time.monotonic()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def save(self, trainer: Any) -> None:
        """Write ``last.ckpt`` so that a reader never sees half of it."""
        temporary = self.path.with_name(self.path.name + ".part")
        trainer.save_checkpoint(temporary)
        os.replace(temporary, self.path)
        self._saved = time.monotonic()

    def validate(self, trainer: Any, pl_module: OccupancyModule) -> None:
        """Measure the averaged weights and log the result."""
        found = validate(pl_module, trainer.datamodule.source, pl_module.config.run.validate_shapes)
        self._validated = time.monotonic()
        if not found:
            return
        pl_module.record["validation"] = {"step": trainer.global_step, **found}
        self.run_log.write(trainer, {f"validation_{name}": value for name, value in found.items()})
        report(
            f"step {trainer.global_step}  held-out IoU {found['iou']:.4f} (best {found['iou_best']:.4f} at "
            f"{found['threshold_best']:.2f})"
        )

    def on_train_batch_end(
        self, trainer: Any, pl_module: OccupancyModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Do what is due."""
        run = pl_module.config.run
        if self.interrupted or pl_module.done >= 1.0:
            trainer.should_stop = True
            return
        now = time.monotonic()
        if run.validate_minutes and now - self._validated > 60 * run.validate_minutes:
            self.validate(trainer, pl_module)
        if now - self._saved > 60 * run.checkpoint_minutes:
            self.save(trainer)

    def on_train_end(self, trainer: Any, pl_module: OccupancyModule) -> None:
        """Validate a finished run; save; give the signals back."""
        if not self.interrupted:
            self.validate(trainer, pl_module)
        self.save(trainer)
        self._give_back()
