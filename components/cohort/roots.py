"""Where bytes lie on this machine: configuration of the machine, never of the release.

A root is named (``dicom``, ``nifti``, ``lidc_nodules``) and found in the environment variable
``CTFOUNDRY_ROOT_<NAME>`` or in ``.ctfoundry/roots.json``, which git ignores. What a release was made from is pinned in
``params.yaml`` by :func:`tree_digest`, which holds no path.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from components.files import write_json
from components.params import UserError

ROOTS_FILE = Path(".ctfoundry/roots.json")
HEAD_BYTES = 4096


def _recorded() -> dict[str, str]:
    return dict(json.loads(ROOTS_FILE.read_text())) if ROOTS_FILE.is_file() else {}


def root_of(name: str) -> Path:
    """The folder behind a named root.

    Raises:
        UserError: not configured on this machine, or not a folder.
    """
    variable = f"CTFOUNDRY_ROOT_{name.upper()}"
    value = os.environ.get(variable) or _recorded().get(name)
    if not value:
        raise UserError(f"root {name!r}: not configured on this machine; set {variable}=<folder>")
    path = Path(value)
    if not path.is_dir():
        raise UserError(f"root {name!r}: {value} is not a folder; set {variable}=<folder>")
    return path


def record_root(name: str, folder: Path) -> None:
    """Remember a root for this checkout. Raises UserError where ``folder`` is not a folder."""
    if not folder.is_dir():
        raise UserError(f"root {name!r}: {folder} is not a folder")
    write_json(ROOTS_FILE, {**_recorded(), name: str(folder.resolve())})


def tree_digest(folder: Path) -> str:
    """Digest of a tree: relative path, size and first 4 KiB of every file.

    Sees every added, removed, renamed or resized file and every changed header, without reading terabytes; the bytes
    themselves are hashed by ``acquire``.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            with path.open("rb") as stream:
                head = hashlib.sha256(stream.read(HEAD_BYTES)).hexdigest()
                size = stream.seek(0, os.SEEK_END)
        except OSError:  # without permission, or gone: the cohort's table of files says so
            head, size = "unreadable", 0
        entry = f"{path.relative_to(folder).as_posix()}\0{size}\0{head}\n"
        digest.update(entry.encode("utf-8", "surrogateescape"))  # a file's name may be any bytes
    return digest.hexdigest()


def check_pinned(name: str, pinned: str | None, key: str) -> Path:
    """The root ``name``, after making sure that it holds the very data that ``params.yaml`` pins.

    Args:
        name: of the root.
        pinned: the digest in ``params.yaml``.
        key: dotted key of that digest, for the message.

    Raises:
        UserError: not configured, not pinned, or another tree than the pinned one.
    """
    folder = root_of(name)
    if not pinned:
        raise UserError(f"params.yaml: {key}: null is not allowed with this source; run `ctfoundry release --source`")
    found = tree_digest(folder)
    if found != pinned:
        raise UserError(
            f"root {name!r}: its files have changed (digest {found[:12]}, {key} pins {pinned[:12]}); "
            f"run `ctfoundry release --source {name}:<folder>` to pin them as they are now"
        )
    return folder
