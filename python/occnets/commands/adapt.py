# SPDX-License-Identifier: MIT
"""The options ``--optimize...`` of ``occnets reconstruct``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any


def add_optimization(parser: argparse.ArgumentParser) -> None:
    """Add the options of test-time optimisation."""
    add = parser.add_argument_group("test-time optimisation").add_argument
    add(
        "--optimize",
        nargs="?",
        const="preset",
        metavar="STEPS",
        help="adapt a copy of the network to the points first; by so many steps, or as many as the preset has [no]",
    )
    add(
        "--optimize-preset",
        metavar="NAME",
        help="default, or the original's object or scene [with --scene: large-scene, for crop models], or a "
        "configuration with a section test_optim",
    )
    add("--learning-rate", type=float, metavar="RATE", help="of --optimize [the preset's]")
    add(
        "--save-every",
        type=int,
        metavar="K",
        help="with --optimize: write a mesh every K steps, and at the end one for each threshold of the preset",
    )


def optimization(args: argparse.Namespace, preset: str) -> Any:
    """The `OptimizeOptions` of a command line, or None.

    Args:
        args: of ``occnets reconstruct``.
        preset: where none is named.

    Raises:
        ValueError: an option belongs to ``--optimize`` and that is missing, or a value is out of range.
    """
    from occnets.refine import PRESETS, options_from_config

    if args.optimize is None:
        for name in ("optimize_preset", "learning_rate", "save_every"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --optimize, which is missing")
        return None
    name = args.optimize_preset or preset
    if name in PRESETS:
        options = PRESETS[name]
    else:
        from occnets.config import load_config

        found = options_from_config(load_config(name))
        if found is None:
            raise ValueError(
                f"--optimize-preset {name}: the configuration has no section test_optim; presets: {', '.join(PRESETS)}"
            )
        options = found
    if args.optimize != "preset":
        if not args.optimize.isdecimal() or not int(args.optimize):
            raise ValueError(f"--optimize: expected a number of steps, got {args.optimize!r}")
        options = dataclasses.replace(options, steps=int(args.optimize))
    if args.learning_rate is not None:
        options = dataclasses.replace(options, learning_rate=args.learning_rate)
    if args.save_every is not None:
        if args.save_every < 1:
            raise ValueError(f"--save-every: expected at least 1, got {args.save_every}")
        options = dataclasses.replace(options, snapshot_every=args.save_every)
    return options
