"""``ctfoundry volume``: look at one volume, of the store or from outside."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import UserError
from components.files import require_file_name
from flows.lines import add_line

if TYPE_CHECKING:
    from components.ct.labels.onto_grid import Labels
    from components.looking.volume import Opened

STORED = "stored"  # in place of a file: the label map that lies in the store beside a volume
WINDOW_NAMES = ("soft", "lung", "bone", "brain")
# Reasons of the suite *headers* for which slices are no grid: voxels then do not lie where the affine says.
NO_GRID = ("repeated_positions", "uneven_spacing", "mixed_geometry", "orientation", "missing_tags", "mixed_series")
FORCE = "go on where slices are slightly uneven, or labels name another scan, and you know better"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command ``ctfoundry volume`` and what follows it."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument(
            "volume", help="a series' key in the store, a .b2nd, .nii or .nii.gz file, or a folder with one CT series"
        )
        add_line(sub, "whose store")
        return sub

    action("info", _info, "Grid, place in millimetres, HU and provenance of a volume.")
    show = action("show", _show, "Three planes through a point as PNG, under CT windows, with a mask over them.")
    show.add_argument("--output", type=Path, help="PNG (default: <name>.png here)")
    show.add_argument("--window", choices=WINDOW_NAMES, action="append", help="a row each (default: soft)")
    show.add_argument(
        "--at", type=float, nargs=3, metavar=("R", "A", "S"),
        help="point in mm, RAS, that the planes pass (default: the mask's centre, or the volume's)",
    )  # fmt: skip
    show.add_argument(
        "--mask",
        type=Path,
        help=f"labels of the same scan: NIfTI on any grid, DICOM SEG or RTSTRUCT; or `{STORED}`, those of the store",
    )
    _of_labels(show)
    label = action("label", _label, "Bring NIfTI labels, DICOM SEG or RTSTRUCT onto a volume's grid.")
    label.add_argument("labels", type=Path, help=f"labels of the same scan, or `{STORED}`")
    label.add_argument(
        "--output", type=Path,
        help=".b2nd, .nii or .nii.gz, or a folder for a NIfTI of each segment (default: <name>.labels.b2nd here)",
    )  # fmt: skip
    _of_labels(label)
    export = action("export", _export, "Write a volume as NIfTI.")
    export.add_argument("output", type=Path, help="a .nii or .nii.gz file")
    for sub in (show, label, export):
        sub.add_argument("--force", action="store_true", help=FORCE)


def _of_labels(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--segment", action="append", default=[], metavar="NAME", help="only this one; may be repeated")


def _open(arguments: argparse.Namespace) -> Opened:
    """Open and judge a volume, as training and the service do: on stderr, what training would reject it for.

    Raises:
        UserError: its slices form no even grid, and that is not allowed by ``--force`` or wanted by ``info``.
    """
    from components.looking.volume import find, open_volume
    from components.screen.config import ScreenConfig
    from components.screen.suite import headers_suite
    from components.settings import load_stage
    from components.sources.config import AcquireConfig
    from serving.judging import warnings_of

    path = find(arguments.volume, arguments.line)
    largest = path.is_dir() and load_stage(AcquireConfig, arguments.line, "acquire").only_largest_stack
    opened = open_volume(path, largest)
    if not opened.measured:
        return opened
    told = warnings_of(opened.measured, headers_suite(load_stage(ScreenConfig, arguments.line, "screen"), rows=1))
    no_grid = [text for text in told if text.partition(":")[0] in NO_GRID]
    if no_grid and not getattr(arguments, "force", True):
        raise UserError(f"volume {opened.name}: {no_grid[0]}; voxels would not lie where they are said to; allowed: "
                        "one even stack of slices, or --force where you know better")  # fmt: skip
    for text in told:
        print(f"warning: {text}", file=sys.stderr)
    return opened


def _require_new(arguments: argparse.Namespace, *read: Path | None) -> None:
    """Raise UserError where the output is a folder, or one of the files that are read."""
    require_file_name(arguments.output, Path(arguments.volume), *filter(None, read))


def _read_labels(arguments: argparse.Namespace, path: Path, opened: Opened) -> Labels:
    from components.ct.labels.apart import read_labels_apart
    from components.ct.labels.onto_grid import NIFTI_SUFFIXES

    if path == Path(STORED):
        return _stored_labels(arguments, opened)
    scan = None if arguments.force else opened.origin
    if scan is not None and not scan.frame and not path.name.endswith(NIFTI_SUFFIXES):
        print("warning: the volume's frame of reference is not known, so that nothing tells whether the labels are of "
              "the same scan", file=sys.stderr)  # fmt: skip
    return read_labels_apart(path, opened.volume.affine, opened.volume.hu.shape, scan, arguments.segment)


def _stored_labels(arguments: argparse.Namespace, opened: Opened) -> Labels:
    from components.ct.labels.onto_grid import check_wanted, labels_of
    from components.ct.labels.stored import label_map_of, read_label_map
    from components.looking.volume import find

    path = label_map_of(find(arguments.volume, arguments.line))
    if path is None:
        raise UserError(f"labels of {opened.name}: the store has none; `data/<line>/curate/labels.json` tells why")
    labels = labels_of(read_label_map(path), opened.volume.affine, arguments.segment)
    check_wanted(path, labels, arguments.segment)
    return labels


def _info(arguments: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from components.looking.volume import facts
    from components.progress import wide_console

    opened = _open(arguments)
    table = Table(title=Text(opened.name), show_header=False)  # as Text: names may hold what Rich takes for markup
    for label, text in facts(opened).items():
        table.add_row(label, Text(text))
    wide_console().print(table)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from components.looking.volume import draw

    if arguments.segment and not arguments.mask:
        raise UserError(f"--segment {arguments.segment[0]}: of which labels? give them with --mask")
    if arguments.output:
        _require_new(arguments, arguments.mask)
    opened = _open(arguments)
    mask = _read_labels(arguments, arguments.mask, opened).combined() if arguments.mask else None
    target = arguments.output or require_file_name(Path(f"{opened.name}.png"))
    draw(opened, target, tuple(arguments.window or ("soft",)), tuple(arguments.at) if arguments.at else None, mask)
    print(target)
    return 0


def _label(arguments: argparse.Namespace) -> int:
    from math import prod

    from rich.table import Table
    from rich.text import Text

    from components.looking.volume import export_labels
    from components.progress import wide_console

    if arguments.output and arguments.output.suffix:
        _require_new(arguments, arguments.labels)
    opened = _open(arguments)
    labels = _read_labels(arguments, arguments.labels, opened)
    table = Table("segment", "code", "voxels", "ml", "within the volume", title=Text(arguments.labels.name))
    for segment in labels.segments:
        millilitres = segment.voxels * prod(opened.volume.spacing) / 1000
        covered = f"{segment.covered:.1%}"
        table.add_row(Text(segment.name), Text(segment.code), f"{segment.voxels:,}", f"{millilitres:.2f}", covered)
    wide_console().print(table)
    target = arguments.output or Path(f"{opened.name}.labels.b2nd")
    for written in export_labels(labels, target):
        print(written)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from components.looking.volume import export

    _require_new(arguments)
    export(_open(arguments), arguments.output)
    print(arguments.output)
    return 0
