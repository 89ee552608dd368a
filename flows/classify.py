"""``ctfoundry classify``: what the heads of a release answer for one scan, without a server."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import UserError
from flows.lines import add_line

if TYPE_CHECKING:
    from serving.embedding import ServedBundle


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry classify``."""
    parser.set_defaults(run=run)
    add_line(parser)
    parser.add_argument("file", type=Path, help="one CT series as zip, or a NIfTI volume")
    parser.add_argument(
        "--at", type=float, nargs=3, metavar=("R", "A", "S"), help="point in mm, RAS, for heads that see a point"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the answers as JSON; the file is read in a process of its own, as the service does."""
    import numpy  # noqa: F401  # its BLAS takes its buffers here, and not within the child's bounds

    from components.confined import Bounds, Result, isolated

    def load() -> ServedBundle:
        from serving.embedding import open_release

        return open_release(Path("releases") / arguments.line)

    def work(bundle: ServedBundle) -> Result:
        from serving.classifying import classify_file
        from serving.limits import Limits

        tempfile.tempdir = scratch
        point = tuple(arguments.at) if arguments.at else None
        return Result(classify_file(arguments.file, bundle, point, Limits.from_environment()))

    if not arguments.file.is_file():
        raise UserError(f"file {arguments.file.name!r}: no such file")
    with tempfile.TemporaryDirectory(prefix="ctfoundry-") as scratch:  # a child that is killed cleans nothing up
        answer = isolated(load, work, Bounds.from_environment(), arguments.file.name)
    print(json.dumps(answer.content, indent=2))
    return 0
