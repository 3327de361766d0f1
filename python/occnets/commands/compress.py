# SPDX-License-Identifier: MIT
"""``occnets compress``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "compress",
        help="a smaller copy of a model",
        description="Write a smaller copy of a model as a folder: small weights set to zero, weights in eight bits.",
    )
    add = parser.add_argument
    add("model", help="name (see 'occnets models'), folder or weights file")
    add("-o", "--output", type=Path, required=True, help="folder to write; reconstruct --model FOLDER uses it")
    add("--config", help="configuration of a weights file: a YAML file or a packaged name")
    add("--prune", type=float, default=0.0, metavar="SHARE", help="set this share of the weights to zero [none]")
    add("--no-int8", action="store_true", help="keep float16 weights")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from occnets.training.compress import compress

    made = compress(args.model, args.output, config=args.config, share=args.prune, int8=not args.no_int8)
    print(
        f"{made.folder}: {made.parameters:,} parameters, {made.zeros / made.parameters:.1%} zero, "
        f"{made.before / 2**20:.2f} MiB in float32, {made.after / 2**20:.2f} MiB written"
    )
    return 0
