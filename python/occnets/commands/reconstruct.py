# SPDX-License-Identifier: MIT
"""``occnets reconstruct``: clouds, pictures and voxels."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from occnets.commands.adapt import add_optimization, optimization
from occnets.commands.render import make_view
from occnets.commands.scene import SCENE_MODEL, add_scene_options, check_scene_options, run_scene, scene_options
from occnets.commands.talk import Talk

if TYPE_CHECKING:
    from occnets.reconstruct import Reconstruction, Reconstructor

DEFAULT_MODEL = "convonet-grid"

_EXAMPLES = """examples:
  occnets reconstruct scan.ply -o mesh.glb
  occnets reconstruct scan.las -o mesh.ply --resolution 256 --render picture.png
  occnets reconstruct scan.xyz -o mesh.obj --json --quiet > numbers.json
  occnets reconstruct building.las -o mesh.ply --scene --open --memory 4G --resume work
  occnets reconstruct chair.png -o chair.ply --model onet-img
  occnets reconstruct model.binvox -o model.ply --model convonet-voxel-grid32 --precision bf16
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "reconstruct",
        help="point cloud, picture or voxels in, closed mesh out",
        description="Reconstruct a closed mesh from a point cloud or voxels, in their own units and frame, or from a "
        "picture, in the unit cube.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "input",
        type=Path,
        help="PLY OBJ OFF STL GLB XYZ TXT CSV PTS PWN PCD NPY NPZ LAS or LAZ, of meshes the vertices; a picture PNG "
        "JPG ...; voxels BINVOX NPY NPZ",
    )
    add("-o", "--output", type=Path, required=True, help="mesh to write: .ply .obj .off .stl or .glb")
    group = parser.add_argument_group("model and surface")
    add = group.add_argument
    add("--model", help=f"name (see 'occnets models'), folder or weights file [{DEFAULT_MODEL}]")
    add("--config", help="configuration of a weights file: a YAML file or a packaged name")
    add("--resolution", type=int, default=128, metavar="R", help="lattice cells along a side, 8 to 2048 [%(default)s]")
    add("--threshold", type=float, metavar="P", help="occupancy probability of the surface [the model's]")
    add("--ensemble", type=int, metavar="K", help="average over K orientations of the input, 1 to 48 [the model's]")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N [%(default)s]")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the encoder, for GPUs [%(default)s]")
    add("--memory", metavar="SIZE", help="limit of the field's evaluation, such as 500M or 4G [none]")
    group = parser.add_argument_group("mesh")
    add = group.add_argument
    add(
        "--refine",
        type=int,
        nargs="?",
        const=30,
        default=0,
        metavar="STEPS",
        help="move the faces into the network's surface, by so many steps [none; %(const)s if no number is given]",
    )
    add("--no-fit", action="store_true", help="keep the network's surface; do not move it onto the points")
    add(
        "--simplify",
        type=_amount,
        metavar="FACES|RATIO",
        help="reduce to so many faces, or, below 1, to that share of them (extra 'mesh')",
    )
    keep = group.add_mutually_exclusive_group()
    keep.add_argument("--largest", action="store_true", help="keep only the largest body and the cavities in it")
    keep.add_argument("--keep-all", action="store_true", help="keep crumbs too (below 1/10000 of the volume)")
    add("--normals", action="store_true", help="write vertex normals")
    add_optimization(parser)
    _add_input(parser.add_argument_group("input").add_argument)
    add_scene_options(parser)
    _add_reports(parser.add_argument_group("reports").add_argument)
    parser.set_defaults(run=run)


def _add_input(add: Callable[..., Any]) -> None:
    add("--points", type=int, metavar="N", help="give the network at most N points [as many as it was trained with]")
    add("--sample", type=int, metavar="N", help="the input is a mesh: draw N points from its surface")
    add("--pose", type=Path, metavar="FILE", help="a picture's camera: 4 x 4 matrix, world to camera, text or NPY")
    add("--background", default="black", metavar="COLOR", help="behind transparent parts of a picture [%(default)s]")
    add("--outliers", choices=("auto", "strong", "off"), default="auto", help="removal of stray points [%(default)s]")
    add("--frame", choices=("auto", "unit"), default="auto", help="unit: the cloud lies in the unit cube already")
    add("--seed", type=int, default=0, help="of every random choice [%(default)s]")


def _add_reports(add: Callable[..., Any]) -> None:
    add("--render", type=Path, metavar="PNG", help="picture of the cloud and the mesh side by side")
    add("--report", type=Path, metavar="FILE", help="all numbers as .json, or as .html with the picture")
    add("--json", action="store_true", help="print all numbers as one JSON object on stdout")
    add("--up", choices=("x", "y", "z"), help="axis that points up in the picture [by the input's format]")
    add("--quiet", action="store_true", help="print nothing but errors")


def _amount(text: str) -> int | float:
    """A number of faces, or a share of them."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number of faces or a share below 1, got {text!r}") from error


def run(args: argparse.Namespace) -> int:
    """``occnets reconstruct``."""
    check_scene_options(args)
    _check_paths(args)
    args.model = args.model or (SCENE_MODEL if args.scene else DEFAULT_MODEL)
    talk, timings, start = Talk(args.quiet), {}, time.perf_counter()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        timings[name] = timings.get(name, 0.0) + time.perf_counter() - began
        return result

    work = timed("read", lambda: _read(args, talk))
    chosen = scene_options if args.scene else _options
    options = timed("import", lambda: chosen(args))  # a wrong option is reported before weights are loaded
    try:
        reconstructor = timed("load", lambda: _load(args, talk))
        result = work(reconstructor, options, talk.progress())
    finally:
        talk.close()
    timings |= {name: seconds for name, seconds in result.timings.items() if name != "total"}
    picture = timed("render", lambda: _picture(args, result)) if args.render or _wants_page(args.report) else b""
    timed("write", lambda: _write_results(args, result, picture))
    timings["total"] = time.perf_counter() - start
    record = _record(args, reconstructor, result, timings)
    if args.report:
        from occnets.report import write_report

        write_report(args.report, record, picture)
    _tell(args, talk, record)
    return 0


def _check_paths(args: argparse.Namespace) -> None:
    """Everything that can be known to fail before the work begins."""
    from occnets.io import check_writable
    from occnets.report import REPORT_ENDINGS

    outputs = [args.output, args.render, args.report]
    for path, endings in zip(outputs, (None, (".png",), REPORT_ENDINGS), strict=True):
        if path is not None:
            check_writable(path, endings)
    given = [path.resolve() for path in [args.input, *outputs] if path is not None]
    if len(set(given)) < len(given):
        raise ValueError("two of the input, output, picture and report are the same file; give each its own name")


def _read(args: argparse.Namespace, talk: Talk) -> Callable[[Reconstructor, Any, Any], Reconstruction]:
    """Read the input; what comes back reconstructs it."""
    from occnets.io import IMAGE_ENDINGS, is_voxel_file, read_image, read_points, read_pose, read_voxels

    picture = args.input.suffix.lower() in IMAGE_ENDINGS
    if args.pose is not None and not picture:
        raise ValueError(f"--pose is the camera of a picture, but {args.input} is none")
    if not picture and not is_voxel_file(args.input):
        cloud = read_points(args.input, sample=args.sample, seed=args.seed)
        if args.scene:
            return lambda owner, options, progress: run_scene(owner, cloud, options, args, talk)
        keep = _keeper(args) if args.save_every else None
        return lambda owner, options, progress: owner.reconstruct(cloud, options, progress=progress, on_mesh=keep)
    if args.scene:
        raise ValueError(f"--scene is for clouds and meshes, but {args.input} is none")
    if args.optimize is not None:
        raise ValueError(f"--optimize adapts the network to measured points, but {args.input} holds none")
    if args.sample is not None or args.points is not None:
        raise ValueError(f"--sample and --points are for clouds and meshes, but {args.input} is none")
    if not picture:
        voxels = read_voxels(args.input)
        return lambda owner, options, progress: owner.reconstruct_voxels(voxels, options, progress=progress)
    image = read_image(args.input, background=args.background)
    pose = None if args.pose is None else read_pose(args.pose)
    return lambda owner, options, progress: owner.reconstruct_image(image, options, pose=pose, progress=progress)


def _load(args: argparse.Namespace, talk: Talk) -> Reconstructor:
    from occnets.reconstruct import Reconstructor

    return Reconstructor.from_pretrained(
        args.model, args.config, args.device, precision=args.precision, progress=talk.download()
    )


def _keeper(args: argparse.Namespace) -> Callable[[int, float, Any], None]:
    """Writes intermediate meshes beside the output."""

    def keep(step: int, threshold: float, mesh: Any) -> None:
        from occnets.io import write_mesh

        name = f"{args.output.stem}_step{step}_th{threshold:g}{args.output.suffix}"
        write_mesh(args.output.with_name(name), mesh, normals=args.normals)

    return keep


def _options(args: argparse.Namespace) -> Any:
    from occnets.reconstruct import ReconstructionConfig

    return ReconstructionConfig(
        resolution=args.resolution,
        threshold=args.threshold,
        max_points=args.points,
        seed=args.seed,
        ensemble=args.ensemble,
        optimize=optimization(args, "default"),
        refine=args.refine,
        fit=not args.no_fit,
        simplify=args.simplify,
        outliers=args.outliers,
        frame=args.frame,
        components="largest" if args.largest else "all" if args.keep_all else "clean",
        normals=args.normals,
        memory=args.memory,
    )


def _wants_page(report: Path | None) -> bool:
    return report is not None and report.suffix.lower() != ".json"


def _picture(args: argparse.Namespace, result: Reconstruction) -> bytes:
    import numpy as np

    from occnets.io import Geometry
    from occnets.render import render_png

    mesh = Geometry(np.asarray(result.mesh.vertices), faces=np.asarray(result.mesh.faces))
    shown = [Geometry(result.cloud), mesh] if len(result.cloud) else [mesh]
    return render_png(shown, view=make_view(args.up, args.input))


def _write_results(args: argparse.Namespace, result: Reconstruction, picture: bytes) -> None:
    import warnings

    from occnets.io import atomic_write, write_mesh

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the precision warning is part of the record
        write_mesh(args.output, result.mesh, normals=args.normals)
    if args.render:
        with atomic_write(args.render) as stream:
            stream.write(picture)


def _record(
    args: argparse.Namespace, reconstructor: Reconstructor, result: Reconstruction, timings: dict[str, float]
) -> dict[str, Any]:
    import numpy as np

    from occnets.io import precision_warning
    from occnets.report import versions

    statistics = dict(result.stats)
    settings = statistics.pop("settings")
    precision = precision_warning(args.output, np.asarray(result.mesh.vertices))
    return {
        "input": str(args.input),
        "output": str(args.output),
        "model": {
            "name": reconstructor.name,
            "parameters": reconstructor.parameter_count(),
            "device": str(reconstructor.device),
        },
        "settings": settings,
        "statistics": statistics,
        "timings": timings,
        "warnings": [*result.warnings, *([precision] if precision else [])],
        "versions": versions(),
    }


def _tell(args: argparse.Namespace, talk: Talk, record: dict[str, Any]) -> None:
    from occnets.report import summary, to_json

    for note in record["warnings"]:
        talk.say(f"warning: {note}")
    for line in summary(record):
        talk.say(line)
    written = [str(path) for path in (args.output, args.render, args.report) if path is not None]
    talk.say(f"written {', '.join(written)}")
    if args.json:
        print(to_json(record))
