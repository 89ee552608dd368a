"""The manifest of a release folder: the SHA-256 of every file, the hashes of what it was made from, one digest.

No git commit, no clock and no path of the machine is in it: equal code, parameters, pinned versions and data give an
equal digest. The commit is a label of the Bento instead.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.files import read_json, sha256_file, write_json

MANIFEST_FILE = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """What a release folder holds.

    Attributes:
        format: version of this layout.
        line: model line.
        name: model name, from the parameters.
        files: relative POSIX path to hex SHA-256, every file of the folder but the manifest itself.
        inputs: what it was made from to hex SHA-256, e.g. ``code``, ``parameters``, ``lock``, ``data/cohort``.
        digest: hex SHA-256 over everything above; the identity of the release.
    """

    format: int
    line: str
    name: str
    files: dict[str, str]
    inputs: dict[str, str]
    digest: str


def digest_of(line: str, name: str, files: dict[str, str], inputs: dict[str, str]) -> str:
    """Hex SHA-256 over the sorted entries, one ``kind NUL key NUL value`` line each."""
    digest = hashlib.sha256(f"format\0{FORMAT}\nline\0{line}\nname\0{name}\n".encode())
    for kind, entries in (("file", files), ("input", inputs)):
        for key in sorted(entries):
            digest.update(f"{kind}\0{key}\0{entries[key]}\n".encode())
    return digest.hexdigest()


def write_manifest(folder: Path, line: str, name: str, inputs: dict[str, str]) -> Manifest:
    """Hash every file below ``folder`` and write ``manifest.json`` beside them."""
    files = {path: sha256_file(folder / path) for path in _paths(folder)}
    manifest = Manifest(FORMAT, line, name, files, inputs, digest_of(line, name, files, inputs))
    write_json(folder / MANIFEST_FILE, asdict(manifest))
    return manifest


def verify_bundle(folder: Path) -> Manifest:
    """Recompute every hash of a release folder and compare it with its manifest.

    Raises:
        UserError: naming the first file (in order of path) that is missing, differs or is not in the manifest, or
            saying that the manifest itself is missing, unreadable or does not add up.
    """
    manifest = read_manifest(folder)
    found = set(_paths(folder))
    for path in sorted(found | set(manifest.files)):
        if path not in found:
            raise UserError(f"bundle {folder.name}: {path}: missing; make the release again or copy it whole")
        if path not in manifest.files:
            raise UserError(f"bundle {folder.name}: {path}: not in the manifest; remove it or make the release again")
        if (folder / path).is_symlink() and not _in_dvc_cache(folder / path):
            raise UserError(
                f"bundle {folder.name}: {path}: is a link; a bundle holds plain files, or DVC's links to its own cache"
            )
        actual = sha256_file(folder / path)
        if actual != manifest.files[path]:
            raise UserError(
                f"bundle {folder.name}: {path}: differs from the manifest (SHA-256 {actual[:12]}, expected "
                f"{manifest.files[path][:12]}); make the release again or copy it whole"
            )
    expected = digest_of(manifest.line, manifest.name, manifest.files, manifest.inputs)
    if expected != manifest.digest:
        raise UserError(
            f"bundle {folder.name}: {MANIFEST_FILE}: digest {manifest.digest[:12]} is not that of its entries "
            f"({expected[:12]}); make the release again or copy it whole"
        )
    return manifest


def _in_dvc_cache(link: Path) -> bool:
    """Whether DVC has put the link there (``cache.type symlink``): its objects are named by their own MD5."""
    target = link.resolve()
    name = f"{target.parent.name}{target.name}"
    if not re.search(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$", target.as_posix()) or not target.is_file():
        return False
    with target.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest() == name


def read_manifest(folder: Path) -> Manifest:
    """The manifest as written, unchecked. Raises UserError where it is missing or not one of ours."""
    path = folder / MANIFEST_FILE
    try:
        content: Any = read_json(path)
    except FileNotFoundError:
        raise UserError(f"bundle {folder.name}: {MANIFEST_FILE}: missing; this is no release folder") from None
    except ValueError as error:
        raise UserError(f"bundle {folder.name}: {MANIFEST_FILE}: not JSON: {error}") from None
    try:
        manifest = Manifest(**content)
    except TypeError:
        raise UserError(f"bundle {folder.name}: {MANIFEST_FILE}: keys are not those of format {FORMAT}") from None
    if manifest.format != FORMAT:
        raise UserError(f"bundle {folder.name}: format {manifest.format} is not known: this version reads {FORMAT}")
    if not all(isinstance(entries, dict) for entries in (manifest.files, manifest.inputs)):
        raise UserError(f"bundle {folder.name}: {MANIFEST_FILE}: files and inputs must be mappings")
    return manifest


def _paths(folder: Path) -> list[str]:
    """Sorted relative paths of all files and links below ``folder``, without the manifest."""
    found = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return sorted(p.relative_to(folder).as_posix() for p in found if p != folder / MANIFEST_FILE)
