# SPDX-License-Identifier: MIT
"""The command line of training; answers ``--help`` without importing torch."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from occnets.config import ConfigError
from occnets.training.config import load

_SHORTCUTS = (
    ("output", "run.output", str, "FOLDER", "folder for logs, checkpoints and the exported model"),
    ("pool", "pool.path", str, "FOLDER", "folder of the shape pool"),
    ("max-minutes", "run.max_minutes", float, "MINUTES", "end, fully decayed, after this many training minutes"),
    ("max-steps", "run.max_steps", int, "STEPS", "end after this many optimiser steps"),
    ("threads", "run.threads", int, "COUNT", "torch threads"),
    ("seed", "run.seed", int, "SEED", "seed of the weights and of every sample"),
    ("teacher", "distill.teacher", str, "MODEL", "imitate this bundled model or model folder"),
    ("device", "run.device", str, "DEVICE", "auto, cpu or cuda"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="occnets train",
        description="Train an occupancy network on procedural shapes, or export a checkpoint.",
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.yaml", help="training configuration: file or packaged name"
    )
    for flag, key, kind, metavar, text in _SHORTCUTS:
        parser.add_argument(f"--{flag}", type=kind, metavar=metavar, help=f"{text} ({key})")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the configuration")
    parser.add_argument("--resume", metavar="CKPT", help="continue a run from its last.ckpt")
    parser.add_argument("--export", nargs=2, metavar=("CKPT", "OUT"), help="write the model of a checkpoint to OUT")
    return parser


def _portable(argv: Sequence[str]) -> str:
    """The command without the folders of this machine."""
    return shlex.join(["occnets", "train", *(Path(word).name if "/" in word else word for word in argv)])


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    if arguments.export:
        from occnets.training.export import export

        print(export(*arguments.export))
        return 0
    overrides = list(arguments.set)
    for flag, key, _, _, _ in _SHORTCUTS:
        value = getattr(arguments, flag.replace("-", "_"))
        if value is not None:
            overrides.append(f"{key}={value}")
    config = load(arguments.config, overrides)
    from occnets.training.runner import train

    folder = train(config, resume=arguments.resume, command=_portable(argv))
    if folder is None:
        return 130
    print(folder)
    return 0


def cli_main(argv: Sequence[str] | None = None) -> int:
    """Run ``occnets train``.

    Args:
        argv: arguments after ``train``; None takes the process's.

    Returns:
        0 when done, 2 for a wrong configuration, 130 when a signal stopped the run after saving.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.export is None and arguments.config is None:
        parser.error("give a training configuration, or --export CKPT OUT")
    try:
        return _run(arguments, words)
    except (ConfigError, ImportError) as error:
        print(f"occnets train: {error}", file=sys.stderr)
        return 2
