# SPDX-License-Identifier: MIT
"""The command ``occnets``: results go to files and stdout, talk to stderr; torch waits until there is work to do."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from occnets.commands import compress, generate, models, reconstruct, render


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="occnets",
        description="Surfaces from point clouds, pictures and voxels with occupancy networks.",
        epilog="'occnets COMMAND --help' says more. OCCNETS_TRACEBACK=1 shows where an error comes from.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    reconstruct.add_parser(commands)
    generate.add_parser(commands)
    render.add_parser(commands)
    compress.add_parser(commands)
    models.add_parser(commands)
    info = commands.add_parser("info", help="versions, devices and native code of this installation")
    info.add_argument("--json", action="store_true", help="print a JSON object")
    info.set_defaults(run=_about("info"))
    commands.add_parser("train", help="train a model ('occnets train CONFIG.yaml')", add_help=False)
    return parser


def _about(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from occnets import about

        return int(getattr(about, f"print_{name}")(as_json=args.json))

    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        0 on success, 1 when the work failed, 130 when interrupted; wrong usage exits with 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("occnets: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if os.environ.get("OCCNETS_TRACEBACK"):
            raise
        message = _explain(error)
        if message is None:
            raise
        print(f"occnets: {message}", file=sys.stderr)
        return 1


def _explain(error: BaseException) -> str | None:
    """One line for what a user can act on; None for a defect of ours, which deserves its traceback."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out of memory; try a smaller --resolution, or --device cpu"
    return None if isinstance(error, RuntimeError) else text


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["train"]:
        from occnets.training import cli_main

        return cli_main(words[1:])
    parser = build_parser()
    args = parser.parse_args(words)
    if args.version:
        import occnets

        print(f"occnets {occnets.__version__}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    return args.run(args)
