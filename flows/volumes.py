"""``ctfoundry volume``: look at one volume, of the store or from outside."""

from __future__ import annotations

import argparse
from pathlib import Path

WINDOW_NAMES = ("soft", "lung", "bone", "brain")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], lines: tuple[str, ...]) -> None:
    """Add ``volume`` and what follows it."""
    parser = commands.add_parser("volume", help="Look at one volume: facts, three planes as PNG, export to NIfTI.")
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument(
            "volume", help="a series' key in the store, a .b2nd, .nii or .nii.gz file, or a folder of one DICOM series"
        )
        sub.add_argument("--line", choices=lines, default="wholebody", help="whose store (default: wholebody)")
        return sub

    action("info", _info, "Grid, place in millimetres, HU and provenance of a volume.")
    show = action("show", _show, "Three planes through a point as PNG, under CT windows, with a mask over them.")
    show.add_argument("--output", type=Path, help="PNG (default: <name>.png here)")
    show.add_argument("--window", choices=WINDOW_NAMES, action="append", help="a row each (default: soft)")
    show.add_argument(
        "--at", type=float, nargs=3, metavar=("R", "A", "S"),
        help="point in mm, RAS, that the planes pass (default: the mask's centre, or the volume's)",
    )  # fmt: skip
    show.add_argument("--mask", type=Path, help="labels of the same scan: NIfTI on any grid, DICOM SEG or RTSTRUCT")
    label = action("label", _label, "Bring NIfTI labels, DICOM SEG or RTSTRUCT onto a volume's grid.")
    label.add_argument("labels", type=Path, help="labels of the same scan")
    label.add_argument("--output", type=Path, help=".b2nd, .nii or .nii.gz (default: <name>.labels.b2nd here)")
    export = action("export", _export, "Write a volume as NIfTI.")
    export.add_argument("output", type=Path, help="a .nii or .nii.gz file")


def _info(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from components.looking.volume import facts, find, open_volume
    from components.progress import wide_console

    opened = open_volume(find(arguments.volume, arguments.line))
    table = Table(title=opened.name, show_header=False)
    for label, text in facts(opened).items():
        table.add_row(label, text)
    wide_console().print(table)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from components.labels.onto_grid import read_labels
    from components.looking.volume import draw, find, open_volume

    opened = open_volume(find(arguments.volume, arguments.line))
    volume = opened.volume
    mask = read_labels(arguments.mask, volume.affine, volume.hu.shape).combined() if arguments.mask else None
    target = arguments.output or Path(f"{opened.name}.png")
    draw(opened, target, tuple(arguments.window or ("soft",)), tuple(arguments.at) if arguments.at else None, mask)
    print(target)
    return 0


def _label(arguments: argparse.Namespace) -> int:
    from math import prod

    from rich.table import Table

    from components.labels.onto_grid import read_labels
    from components.looking.volume import export_labels, find, open_volume
    from components.progress import wide_console

    opened = open_volume(find(arguments.volume, arguments.line))
    labels = read_labels(arguments.labels, opened.volume.affine, opened.volume.hu.shape)
    table = Table("segment", "code", "voxels", "ml", "within the volume", title=arguments.labels.name)
    for segment in labels.segments:
        millilitres = segment.voxels * prod(opened.volume.spacing) / 1000
        covered = f"{segment.covered:.1%}"
        table.add_row(segment.name, segment.code, f"{segment.voxels:,}", f"{millilitres:.2f}", covered)
    wide_console().print(table)
    target = arguments.output or Path(f"{opened.name}.labels.b2nd")
    export_labels(labels, target)
    print(target)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from components.looking.volume import export, find, open_volume

    export(open_volume(find(arguments.volume, arguments.line)), arguments.output)
    print(arguments.output)
    return 0
