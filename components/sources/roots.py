"""Where bytes lie on this machine: configuration of the machine, never of the release.

A root is named (``dicom``, ``nifti``, ``lidc_nodules``). Those of a source are a line's own, for two lines are mostly
made from two archives. A root is found in the environment, ``CTFOUNDRY_ROOT_<LINE>_<NAME>`` or, for all lines,
``CTFOUNDRY_ROOT_<NAME>``, or else in ``.ctfoundry/roots.json``, which git ignores. What a release was made from is
pinned in ``params.yaml`` by a digest of the tree, which holds no path.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.files import STATE, write_json

ROOTS_FILE = STATE / "roots.json"


def place_of(line: str, name: str = "") -> str:
    """Under which roots and maps of a line's source are kept, or those of the scans of its labelled set ``name``: no
    line has such a name."""
    return f"{line}-{name}" if name else line


def key_of(place: str) -> str:
    """The block of ``params.yaml`` that says what the source of a place is."""
    line, _, name = place.partition("-")
    return f"{line}.sets.{name}.scans" if name else f"{line}.cohort"


def _recorded() -> dict[str, Any]:
    """Line to name to folder; folders right at the top are of every line, as ``--source`` once wrote them."""
    try:
        return dict(json.loads(ROOTS_FILE.read_text())) if ROOTS_FILE.is_file() else {}
    except (ValueError, TypeError):
        raise UserError(f"{ROOTS_FILE}: damaged; remove it, and name the folders again") from None


def _of_line(recorded: dict[str, Any], line: str) -> dict[str, str]:
    found = recorded.get(line)
    return (
        {name: folder for name, folder in found.items() if isinstance(folder, str)} if isinstance(found, dict) else {}
    )


def root_of(name: str, place: str = "") -> Path:
    """The folder behind a named root, of a place where it is a source's. What is said of a line, or of all lines, does
    not hold for the scans of its labelled sets: those are others.

    Raises:
        UserError: not configured on this machine, or not a folder.
    """
    line, _, of_set = place.partition("-")
    variable = f"CTFOUNDRY_ROOT_{name.upper()}"
    own = re.sub(r"\W", "_", f"CTFOUNDRY_ROOT_{place.replace('-', '__')}_{name}".upper())
    recorded = _recorded()
    value = os.environ.get(own) or (not of_set and os.environ.get(variable)) or _of_line(recorded, place).get(name)
    if not value and not of_set and isinstance(recorded.get(name), str):  # else a line's, of the same name
        value = recorded[name]
    of = f"root {name!r} of {f'set {of_set} of ' if of_set else ''}line {line}" if place else f"root {name!r}"
    ask = own if of_set else variable
    if not value:
        raise UserError(f"{of}: not configured on this machine; set {ask}=<folder>")
    path = Path(value)
    if not path.is_dir():
        raise UserError(f"{of}: {value} is not a folder; set {ask}=<folder>")
    return path


def copy_roots(origin: str, line: str) -> None:
    """Remember for ``line``, which is a copy of the line ``origin``, the roots that are remembered of that: of its
    source, and of its labelled sets."""
    recorded = _recorded()
    added = {}
    for place in recorded:
        of_line, _, of_set = place.partition("-")
        if of_line == origin and (roots := _of_line(recorded, place)):
            copy = place_of(line, of_set)
            added[copy] = {**_of_line(recorded, copy), **roots}
    if added:
        write_json(ROOTS_FILE, {**recorded, **added})


def record_root(name: str, folder: Path, line: str = "") -> None:
    """Remember a root for this checkout, of a line where it is a source's. Raises UserError where ``folder`` is not a
    folder."""
    if not folder.is_dir():
        raise UserError(f"root {name!r}: {folder} is not a folder")
    recorded, where = _recorded(), str(folder.resolve())
    added = {line: {**_of_line(recorded, line), name: where}} if line else {name: where}
    write_json(ROOTS_FILE, {**recorded, **added})
