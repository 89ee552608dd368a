"""What ``ctfoundry set`` writes of a set's masks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.sources.masks import Found, digest_of, find_masks, names_a_scan
from components.sources.sets import MASKS, SETS

TABLE = "dataset.json"  # of the Medical Segmentation Decathlon and nnU-Net, beside the folders of their label maps


def add_options(add: argparse.ArgumentParser) -> None:
    """Those of ``ctfoundry set add``."""
    add.add_argument(
        "--masks", type=Path, metavar="FOLDER", help="label maps as NIfTI, DICOM SEG or RTSTRUCT of these scans"
    )
    add.add_argument(
        "--match", metavar="PATTERN",
        help="how a mask's path below that folder names its scan, as 'labelsTr/{patient}', or, of a file per "
        "structure, '{patient}/segmentations/{structure}' (default: SEG and RTSTRUCT, by the series they refer to)",
    )  # fmt: skip
    add.add_argument(
        "--analysis-result", action="append", default=[], metavar="NAME",
        help="instead of a folder, of scans of the idc: whose SEG and RTSTRUCT of them are taken (again for more)",
    )  # fmt: skip
    add.add_argument(
        "--names", action="append", default=[], metavar="VALUE=NAME",
        help=f"what a value of a label map is, as 1=liver (again for more); or a JSON file of such, as {TABLE}, which "
        "is read where it lies in the folder of masks",
    )  # fmt: skip


def block_of(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Block ``masks`` of a new set; None where it has none.

    Raises:
        UserError: no such folder, no mask in it, or names that are none.
    """
    folder: Path | None = arguments.masks
    if arguments.analysis_result:
        if folder is not None or arguments.match:
            raise UserError("--analysis-result is not allowed with --masks or --match: masks are of one place")
        return {"analysis_results": arguments.analysis_result, "names": _names(arguments.names)}
    if folder is None:
        if arguments.match or arguments.names:
            raise UserError("--match and --names are not allowed without --masks <folder>")
        return None
    if not folder.is_dir():
        raise UserError(f"--masks {folder}: not a folder")
    told = arguments.names or ([str(folder / TABLE)] if (folder / TABLE).is_file() else [])

    block = {"digest": digest_of(_found(folder, arguments.match).masks), "match": arguments.match}
    return block | {"names": _names(told)}


def digest_now(line: str, name: str, folder: Path, match: str | None) -> str:
    """Digest of a set's masks as they are. Raises UserError where there is none."""
    try:
        return digest_of(find_masks(folder, match).masks)
    except UserError as error:
        raise UserError(f"{line}.{SETS}.{name}.{MASKS}: {error}") from None


def _found(folder: Path, match: str | None) -> Found:
    try:
        return find_masks(folder, names_a_scan(match))
    except ValueError as error:
        raise UserError(f"--match {match!r} is not allowed: {error}") from None


def _names(told: Sequence[str]) -> dict[int | str, str]:
    found: dict[int | str, str] = {}
    for text in told:
        value, given, name = text.partition("=")
        if given and name.strip():
            found[_key(value.strip())] = name.strip()
        else:
            found |= names_in(Path(text))
    return found


def _key(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def names_in(path: Path) -> dict[int | str, str]:
    """Of ``{"1": "liver"}`` and ``{"liver": 1}`` alike, by itself or as ``labels`` of a data set's description; without
    the background."""
    try:
        content = json.loads(path.read_text())
        labels = content.get("labels", content)
        pairs = [(value, name) if isinstance(name, str) else (name, value) for value, name in labels.items()]
        found = {_key(str(value)): str(name) for value, name in pairs}
        if any(not isinstance(value, int) for value in found):  # a region of several values, as nnU-Net has them
            raise ValueError
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f'--names {path}: <value>=<name>, or a JSON file such as {{"1": "liver"}}; '
            "its values are whole numbers, one for each name"
        ) from None
    return {value: name for value, name in found.items() if value != 0}
