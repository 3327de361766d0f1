# SPDX-License-Identifier: MIT
"""Puts a training run together."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from occnets._optional import optional
from occnets.training.callbacks import Keeper, RunLog, report
from occnets.training.config import ConfigError, TrainConfig
from occnets.training.data import PoolDataModule, ShapeSource, enough_shapes
from occnets.training.export import export, read_checkpoint
from occnets.training.module import OccupancyModule

lightning = optional("lightning.pytorch", extra="train", why="to train models")


def choose_device(name: str) -> str:
    """``"cpu"`` or ``"cuda"`` for a configured device.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: expected a CUDA device for 'cuda', found none; use 'cpu' or 'auto'")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def choose_precision(name: str, device: str) -> str:
    """``"bf16"`` or ``"fp32"`` for a configured precision.

    On a CPU without AVX512-BF16 or AMX, bf16 is emulated and about a hundred times slower than fp32; ``"auto"`` asks
    the hardware.
    """
    if name == "auto":
        if device == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if native else "fp32"
    return name


def hardware(device: str, precision: str) -> str:
    """Class of the machine, for the model card."""
    if device == "cuda":
        return f"1 × {torch.cuda.get_device_name()}, {precision}"
    return f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}, {precision}"


def build_network(config: TrainConfig) -> nn.Module:
    """The network of a configuration, convolutions in channels-last memory."""
    from occnets.models import build_model

    model = build_model(config.model)
    # The channels-last layout is what oneDNN and cuDNN compute 3-D convolutions in; converting once saves it per step.
    return model.to(memory_format=torch.channels_last_3d) if _has_conv3d(model) else model


def _has_conv3d(model: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv3d) for part in model.modules())


def _trainer(config: TrainConfig, folder: Path, callbacks: list[Any]) -> Any:
    run = config.run
    device = choose_device(run.device)
    logger = False
    if _has_tensorboard():
        logger = lightning.loggers.TensorBoardLogger(folder, name="tensorboard", version="")
    return lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_steps=run.max_steps or -1,
        max_epochs=-1,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def _has_tensorboard() -> bool:
    try:
        optional("tensorboard", extra="train")
    except ImportError:
        report("tensorboard is not installed; metrics go to metrics.jsonl only")
        return False
    return True


def train(
    config: TrainConfig,
    *,
    resume: str | Path | None = None,
    source: ShapeSource | None = None,
    network: Callable[[TrainConfig], nn.Module] = build_network,
    command: str = "",
) -> Path | None:
    """Train, checkpoint and export.

    Args:
        config: the run.
        resume: a checkpoint to continue; its step, clock, optimiser and averaged weights are restored.
        source: the pool, or None to open ``config.pool.path``.
        network: builds the network.
        command: the command line, for the model card.

    Returns:
        The folder of the exported model, or None when a signal stopped the run early.

    Raises:
        ConfigError: the pool is too small, the checkpoint is foreign or belongs to another model.
    """
    if resume is not None:
        check_resumable(config, resume)
    folder = Path(config.run.output)
    folder.mkdir(parents=True, exist_ok=True)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning", message=".*(number of workers|isinstance.*LeafSpec).*")
    torch.manual_seed(config.run.seed)
    data = PoolDataModule(config, source)
    if not enough_shapes(data.source, config):
        raise ConfigError(
            f"pool.path: expected at least {config.pool.held_out + config.pool.minimum} shapes (held out + minimum), "
            f"found {len(data.source)}; make some with `occnets prepare` or lower pool.minimum"
        )
    device = choose_device(config.run.device)
    precision = choose_precision(config.run.precision, device)
    module = OccupancyModule(network(config), config, precision)
    log = RunLog(folder, config.run.log_steps)
    keeper = Keeper(folder, log)
    trainer = _trainer(config, folder, [log, keeper])
    module.record.update(command=command, hardware=hardware(device, precision))
    count = sum(p.numel() for p in module.model.parameters())
    report(f"{config.run.name}: {count:,} parameters, {len(data.source):,} shapes, {module.record['hardware']}")
    # weights_only keeps pickle out of resuming as well.
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume is not None else None)
    if keeper.interrupted:
        report(f"stopped at step {trainer.global_step}; continue with --resume {keeper.path}")
        return None
    return export(keeper.path, folder / config.run.name)


def check_resumable(config: TrainConfig, path: str | Path) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        ConfigError: the checkpoint is missing, foreign, or its model configuration differs.
    """
    kept = read_checkpoint(path)["config"]
    if kept["model"] != config.to_dict()["model"]:
        raise ConfigError(f"{path}: its model configuration differs from the one to be trained; resume with the same")
