"""What an image is made of: its Python packages, its Debian packages and their licences, read from its own files."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from components.errors import UserError
from components.files import read_json
from flows.image.parts import SUITE

STATUS, DOCUMENTS = "./var/lib/dpkg/status", "./usr/share/doc"
LONGEST = 80  # of a licence's name; what is longer is its text
# Debian's machine-readable copyright file: `License: <name>` of its paragraphs.
_LICENCE = re.compile(r"^License:[ \t]*(\S[^\n]*)$", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """One package of the image.

    Attributes:
        kind: ``python`` or ``debian``.
        name, version: as its own metadata have them.
        purl: package URL, its identity in other tools.
        licences: as it states them; empty where it does not in a form that can be read.
        spdx: whether that is one SPDX expression.
        sha256: of the wheel, where known.
        requires: purls of other parts.
        bundled: libraries within a wheel, where it lists them (PEP 770): name, version, purl.
    """

    kind: str
    name: str
    version: str
    purl: str
    licences: tuple[str, ...] = ()
    spdx: bool = False
    sha256: str | None = None
    requires: tuple[str, ...] = ()
    bundled: tuple[tuple[str, str, str], ...] = ()


def python_parts(site: Path, wheels: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """The distributions below ``site``, sorted; ``wheels`` as :class:`flows.image.parts.Packages` has them."""
    hashes = {_canonical(name): wheel["sha256"] for name, wheel in wheels.items()}
    found = {_canonical(of.name): of for of in metadata.distributions(path=[str(site)])}
    purls = {name: _python_purl(name, of.version) for name, of in found.items()}
    parts = []
    for name, of in sorted(found.items()):
        licences, spdx = stated_licences(of.metadata)
        required = {_canonical(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]) for text in of.requires or ()}
        requires = tuple(sorted(purls[other] for other in required if other in purls and other != name))
        bundled = _bundled(of, name)
        parts.append(
            Part("python", of.name, of.version, purls[name], licences, spdx, hashes.get(name), requires, bundled)
        )
    return parts


def _bundled(of: metadata.Distribution, name: str) -> tuple[tuple[str, str, str], ...]:
    """What a wheel's own bills of materials list beside itself."""
    folder = Path(str(of.locate_file(""))) / f"{of.name.replace('-', '_')}-{of.version}.dist-info" / "sboms"
    found = [
        (str(entry["name"]), str(entry.get("version", "")), str(entry["purl"]))
        for file in sorted(folder.glob("*.json"))
        for entry in read_json(file).get("components", ())
        if "purl" in entry and _canonical(entry["name"]) != name
    ]
    return tuple(sorted(set(found)))


def stated_licences(said: Any) -> tuple[tuple[str, ...], bool]:
    """Licences that a distribution's metadata state, and whether they are one SPDX expression (PEP 639)."""
    if expression := said.get("License-Expression"):
        return (str(expression),), True
    classified = [str(text) for text in said.get_all("Classifier") or () if str(text).startswith("License ::")]
    names = tuple(sorted({text.rpartition(" :: ")[2] for text in classified} - {"OSI Approved"}))
    if names:
        return names, False
    text = " ".join(str(said.get("License") or "").split())
    return ((text,), False) if 0 < len(text) <= LONGEST else ((), False)


def debian_parts(base: Path) -> list[Part]:
    """The Debian packages of a root file system in a tar, sorted.

    Raises:
        UserError: it holds no status of dpkg.
    """
    with tarfile.open(base) as archive:
        members = {member.name: member for member in archive.getmembers()}
        if STATUS not in members:
            raise UserError(f"{base.name}: no {STATUS.removeprefix('.')}: its Debian packages are not known")

        def text(name: str) -> str:
            file = archive.extractfile(members[name]) if name in members else None
            return "" if file is None else file.read().decode(errors="replace")

        def copyright_of(package: str) -> str:
            place = members.get(f"{DOCUMENTS}/{package}")
            if place is not None and place.issym():  # to that of another package of the same source
                package = place.linkname
            return text(f"{DOCUMENTS}/{package}/copyright")

        stanzas = [stanza(block) for block in text(STATUS).strip().split("\n\n")]
        parts = [_debian_part(said, copyright_of(said["Package"])) for said in stanzas]
    return sorted(parts, key=lambda part: part.name)


def stanza(block: str) -> dict[str, str]:
    """The one-line fields of a paragraph of dpkg's status."""
    lines = (line.partition(": ") for line in block.splitlines() if line and not line[0].isspace())
    return {name: value for name, _, value in lines}


def _debian_part(said: Mapping[str, str], copyright_text: str) -> Part:
    name, version = said["Package"], said["Version"]
    purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={said['Architecture']}&distro={SUITE}"
    licences = tuple(sorted({" ".join(text.split()) for text in _LICENCE.findall(copyright_text)}))
    return Part("debian", name, version, purl, licences)


def licence_table(parts: Iterable[Part]) -> str:
    """CSV: kind, name, version and licence of every part; ``see its copyright file`` where none is stated by name."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["kind", "name", "version", "licence"])
    for part in parts:
        table.writerow([part.kind, part.name, part.version, "; ".join(part.licences) or "see its copyright file"])
    return text.getvalue()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python_purl(name: str, version: str) -> str:
    return f"pkg:pypi/{quote(name)}@{quote(version, safe='')}"
