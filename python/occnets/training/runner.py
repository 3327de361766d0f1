# SPDX-License-Identifier: MIT
"""Puts a training run together."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from occnets._optional import optional
from occnets.config import ConfigError
from occnets.training.callbacks import Keeper, RunLog, report
from occnets.training.config import TrainConfig
from occnets.training.data import PoolDataModule, ShapeSource, enough_shapes, training_batch
from occnets.training.export import export, read_checkpoint
from occnets.training.module import OccupancyModule

# Parameter numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

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


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory in the process.

    By default every buffer above 32 MiB is returned to the system and faulted in again at the next step; keeping them
    saves a tenth of the processor time. Other C libraries have no ``mallopt`` and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def build_network(config: TrainConfig) -> nn.Module:
    """The network of a configuration, convolutions in channels-last memory."""
    from occnets.models import build_model

    model = build_model(config.model)
    for part in model.modules():
        if isinstance(part, nn.Conv3d):
            # What oneDNN and cuDNN compute 3-D convolutions in; converting once saves it per step.
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def load_teacher(config: TrainConfig) -> nn.Module | None:
    """The network that a run imitates, or None.

    Raises:
        ConfigError: there is no such model, or it reads other inputs than the one to be trained.
    """
    name = config.distill.teacher
    if not name:
        return None
    from occnets.checkpoints import load_pretrained

    try:
        teacher, settings = load_pretrained(name)
    except FileNotFoundError as error:
        raise ConfigError(f"distill.teacher: {error}") from error
    found, wanted = ((c.get("data") or {}).get("input_type", "pointcloud") for c in (settings, config.model))
    if found != wanted:
        raise ConfigError(f"distill.teacher: expected a model that reads {wanted}, {name} reads {found}")
    return teacher


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
    keep_freed_memory()
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
            f"found {len(data.source)}; make more with `python -m occnets.data.pool` or lower pool.minimum"
        )
    device = choose_device(config.run.device)
    precision = choose_precision(config.run.precision, device)
    model = network(config)
    if config.run.initial and resume is None:
        _start_from(model, config, data.source)
    module = OccupancyModule(model, config, precision, teacher=load_teacher(config))
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


def _start_from(model: nn.Module, config: TrainConfig, source: ShapeSource) -> None:
    from occnets.training.warm import warm_start

    left = warm_start(model, config.run.initial, [training_batch(source, config, 2**62 + k) for k in range(8)])
    report(f"weights of {config.run.initial}" + (f", random: {', '.join(left)}" if left else ""))


def check_resumable(config: TrainConfig, path: str | Path) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        ConfigError: the checkpoint is missing, foreign, or its model configuration differs.
    """
    kept = read_checkpoint(path)["config"]
    if kept["model"] != config.to_dict()["model"]:
        raise ConfigError(f"{path}: its model configuration differs from the one to be trained; resume with the same")
