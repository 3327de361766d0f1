# SPDX-License-Identifier: MIT
"""``occnets models``."""

from __future__ import annotations

import argparse
from typing import Any

from occnets.commands.talk import Talk


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "models",
        help="list the models that can be used by name, or download one",
        description="List the models: name, family, input, parameters, and where weights come from. 'bundled' ones are "
        "part of this program; 'released' ones are the original authors' and are downloaded when they are first used.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print a JSON list")
    what.add_argument("--download", metavar="NAME", help="fetch a released model now and print the file's path")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``occnets models``."""
    if args.download is None:
        from occnets.about import print_models

        return print_models(as_json=args.json)
    from occnets.released import fetch_named

    talk = Talk(args.quiet)
    try:
        path = fetch_named(args.download, talk.download())
    finally:
        talk.close()
    print(path)
    return 0
