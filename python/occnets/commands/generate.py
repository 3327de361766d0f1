# SPDX-License-Identifier: MIT
"""``occnets generate``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from occnets.commands.talk import Talk

if TYPE_CHECKING:
    from occnets.reconstruct import Reconstructor

_EXAMPLES = """examples:
  occnets generate onet-unconditional-cars -o cars --count 8
  occnets generate my-model.pt --config onet-unconditional -o way --interpolate 3 17 --steps 9
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="shapes from nothing, with an unconditional model",
        description="Make shapes from random latent codes, or those between two codes. A code is told by a number, its "
        "seed: shape 17 is the same in every call.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="name (see 'occnets models'), folder or weights file")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder for the meshes; made if absent")
    add("--count", type=int, default=1, metavar="N", help="so many shapes [%(default)s]")
    add("--seed", type=int, default=0, metavar="S", help="of the first shape; the next has S + 1 [%(default)s]")
    add("--interpolate", type=int, nargs=2, metavar=("A", "B"), help="instead the shapes from seed A to seed B")
    add(
        "--steps",
        type=int,
        default=8,
        metavar="K",
        help="shapes on the way, both ends included [%(default)s]",
    )
    add("--linear", action="store_true", help="interpolate on a straight line, not on a sphere")
    add("--format", choices=("ply", "obj", "off", "stl", "glb"), default="ply", help="of the meshes [%(default)s]")
    add("--config", help="configuration of a weights file: a YAML file or a packaged name")
    add("--resolution", type=int, default=128, metavar="R", help="lattice cells along a side, 8 to 2048 [%(default)s]")
    add("--threshold", type=float, metavar="P", help="occupancy probability of the surface [the model's]")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N [%(default)s]")
    add("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``occnets generate``."""
    if args.count < 1 or args.seed < 0:
        raise ValueError(f"--count must be at least 1 and --seed at least 0, got {args.count} and {args.seed}")
    talk = Talk(args.quiet)
    from occnets.io import write_mesh
    from occnets.reconstruct import EmptyReconstructionError, ReconstructionConfig, Reconstructor

    options = ReconstructionConfig(resolution=args.resolution, threshold=args.threshold)
    empty = 0
    try:
        owner = Reconstructor.from_pretrained(args.model, args.config, args.device, progress=talk.download())
        codes = list(_codes(args, owner))
        args.output.mkdir(parents=True, exist_ok=True)
        for name, code in codes:
            path = args.output / f"{name}.{args.format}"
            try:
                result = owner.reconstruct_latent(code, options, progress=talk.progress())
            except EmptyReconstructionError as error:
                empty += 1
                talk.close()
                talk.say(f"warning: {path} was not written: {error}")
                continue
            write_mesh(path, result.mesh)
            talk.close()
            for note in result.warnings:
                talk.say(f"warning: {path}: {note}")
            talk.say(f"written {path}, {result.stats['mesh']['faces']:,} faces")
    finally:
        talk.close()
    return 1 if empty else 0


def _codes(args: argparse.Namespace, owner: Reconstructor) -> Iterator[tuple[str, Any]]:
    """File names and latent codes."""
    from occnets.models.latent import interpolate_latents, latent_of_seed

    if owner.reads != "none" or not getattr(owner.model, "z_dim", 0):
        raise ValueError(
            f"model '{owner.name}' reads {owner.reads} and makes nothing without it; 'occnets models' lists "
            f"unconditional ones, such as onet-unconditional-cars"
        )
    channels = owner.model.z_dim
    if args.interpolate is None:
        for seed in range(args.seed, args.seed + args.count):
            yield f"{seed:04d}", latent_of_seed(seed, channels)
        return
    start, end = (latent_of_seed(seed, channels) for seed in args.interpolate)
    way = interpolate_latents(start, end, args.steps, "linear" if args.linear else "spherical")
    for number, code in enumerate(way):
        yield f"{args.interpolate[0]:04d}-{args.interpolate[1]:04d}-{number:03d}", code
