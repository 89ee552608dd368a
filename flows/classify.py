"""``ctfoundry classify``: what the heads of a release answer for one scan, without a server."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from flows.lines import add_line
from flows.offline import answered

if TYPE_CHECKING:
    from components.confined import Result
    from serving.embedding import ServedBundle
    from serving.limits import Limits


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry classify``."""
    parser.set_defaults(run=run)
    add_line(parser)
    parser.add_argument("file", type=Path, help="one CT series as zip, or a NIfTI volume")
    parser.add_argument(
        "--at", type=float, nargs=3, metavar=("R", "A", "S"), help="point in mm, RAS, for heads that see a point"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the answers as JSON."""
    point = tuple(arguments.at) if arguments.at else None

    def work(bundle: ServedBundle, limits: Limits) -> Result:
        from components.confined import Result
        from serving.classifying import classify_file

        return Result(classify_file(arguments.file, bundle, point, limits))

    print(json.dumps(answered(arguments.file, arguments.line, work).content, indent=2))
    return 0
