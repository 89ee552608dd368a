"""``ctfoundry run``: every scan of a folder to its answers, without a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.lines import add_line
from flows.processes import ending_with_us
from serving import batch_command


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry run``."""
    add_line(parser)
    batch_command.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer for the folder, and say what became of it."""
    with ending_with_us():
        return batch_command.run(arguments, Path("releases") / arguments.line)
