# SPDX-License-Identifier: MIT
"""The scene mode of ``occnets reconstruct``: its options, and what they cannot be combined with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from occnets.commands.talk import Talk

if TYPE_CHECKING:
    from occnets.reconstruct import Reconstruction, Reconstructor

SCENE_MODEL = "convonet-crop"

_OWN = ("open", "unit_size", "window", "steps", "resume")
_FOREIGN = (
    ("resolution", 128, "--steps sets the fineness"),
    ("ensemble", None, "it needs the whole cloud at once"),
    ("refine", 0, "it needs the whole field at once"),
    ("save_every", None, "it needs the whole field at once"),
    ("simplify", None, "it needs the whole mesh's quadrics; simplify the written mesh"),
    ("points", None, "all points are used"),
    ("precision", "fp32", "windows have to agree to the last digits"),
)


def add_scene_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of scenes."""
    group = parser.add_argument_group("scenes", "clouds of any extent, window by window in bounded memory")
    add = group.add_argument
    add("--scene", action="store_true", help=f"reconstruct in windows, with {SCENE_MODEL} if no --model is given")
    add(
        "--open",
        type=float,
        nargs="?",
        const=2.0,
        metavar="K",
        help="leave open what was not measured: cut off what is over K point spacings from all points [%(const)s]",
    )
    add("--unit-size", type=float, metavar="LENGTH", help="side of a cell, input units [from the points' spacing]")
    add("--window", type=int, metavar="CELLS", help="side of a window, a multiple of 16 [what --memory allows, 4G]")
    add("--steps", type=int, metavar="N", help="steps of the mesh's lattice in a cell [2]")
    add("--resume", type=Path, metavar="FOLDER", help="keep finished windows there, and continue from those found")


def check_scene_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: a scene's option without ``--scene``, or one that scenes do not have.
    """
    if not args.scene:
        given = [name for name in _OWN if getattr(args, name) is not None]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} belongs to scenes; give --scene too")
        return
    for name, default, reason in _FOREIGN:
        if getattr(args, name, default) != default:
            raise ValueError(f"--{name.replace('_', '-')} cannot be used with --scene: {reason}")


def scene_options(args: argparse.Namespace) -> Any:
    """The `SceneConfig` of a command line."""
    from occnets.commands.adapt import optimization
    from occnets.scenes import SceneConfig

    given = {"memory": args.memory, "steps": args.steps}
    return SceneConfig(
        unit_size=args.unit_size,
        window=args.window,
        trim=args.open,
        threshold=args.threshold,
        optimize=optimization(args, "large-scene"),
        fit=not args.no_fit,
        components="largest" if args.largest else "all" if args.keep_all else "clean",
        normals=args.normals,
        seed=args.seed,
        **{name: value for name, value in given.items() if value is not None},
    )


def run_scene(
    reconstructor: Reconstructor, cloud: Any, options: Any, args: argparse.Namespace, talk: Talk
) -> Reconstruction:
    """Reconstruct a scene for the command line."""
    from occnets.scenes import reconstruct_scene

    return reconstruct_scene(reconstructor, cloud, options, folder=args.resume, progress=talk.progress(), say=talk.say)
