"""``ctfoundry cases``: the worst and the best cases of an evaluation, to look at in a browser, without a service."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from components import arithmetic
from components.errors import UserError
from components.files import sha256_file
from components.settings import reproducible
from flows.lines import add_line

if TYPE_CHECKING:
    from components.tasks.features import Volumes


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry cases``."""
    parser.set_defaults(run=run)
    parser.description = (
        "Write a folder whose index.html a browser opens from the disk, without a service or a network: the worst and "
        "the best cases of every task that segments or classifies. What the release's head says of them is worked out "
        "anew, and must be what the evaluation has. The folder holds the scans: those of a real cohort are patients' "
        "data. Keep it where they may be, and delete it when it has been looked at; nothing of it goes into a release."
    )
    add_line(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument(
        "--task", action="append", default=[], metavar="TASK", help="a task, or a part of one; may be given again"
    )
    parser.add_argument("--each", type=int, default=1, help="so many of the worst and of the best (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say how to open it."""
    if arguments.each < 1:
        raise UserError(f"--each {arguments.each} is not allowed: at least 1")
    arithmetic.enter(reproducible(arguments.line))  # as the evaluation computed
    from components.progress import track
    from components.sources.sets import sets_of
    from components.tasks.kinds import tasks_of
    from flows.cases.chosen import Tables, choose
    from flows.cases.page import INDEX, require_new, write_page
    from flows.cases.shown import shown
    from serving.embedding import open_release

    line, output = arguments.line, arguments.out
    require_new(output)
    release = Path("releases") / line
    if not release.is_dir():
        raise UserError(f"line {line}: no release in {release}; run `make release LINE={line}` first")
    bundle = open_release(release)
    _require_evaluated(line)
    chosen = choose(Tables.read(line), tasks_of(line, sets_of(line)), arguments.task, arguments.each)
    volumes = _volumes(line)
    worked = ((one, shown(one, bundle, volumes)) for one in track(chosen, [1] * len(chosen), "cases"))
    count = write_page(output, bundle.manifest.name, bundle.manifest.digest, worked)
    print(f"{output}: {count} cases of release {bundle.manifest.digest[:12]}; open {output / INDEX} in a browser")
    return 0


def _volumes(line: str) -> Volumes:
    from components.ct.grid import GridConfig
    from components.models.embed import described
    from components.settings import load_part, load_stage
    from components.tasks.config import EvaluateConfig
    from components.tasks.features import Volumes

    size = described(Path("releases") / line).input.size_vox
    return Volumes(load_stage(EvaluateConfig, line, "evaluate"), load_part(GridConfig, line, "preprocess"), size)


def _require_evaluated(line: str) -> None:
    """Raises UserError where the evaluation that is here is not the release's."""
    from components.evaluate.layout import Layout

    ours, released = Layout.of(line).evaluate / "metrics.json", Path("releases") / line / "metrics.json"
    if not ours.is_file():
        raise UserError(f"{ours}: not found; run `make release` or `dvc pull` first")
    if sha256_file(ours) != sha256_file(released):
        raise UserError(f"{ours}: of another run than releases/{line}; run `dvc checkout`, or make the release again")
