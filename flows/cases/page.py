"""Cases as a folder that a browser opens from the disk: the page, the service's viewer, and each volume as a script,
for a page from a disk may not fetch files."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from components.errors import UserError
from components.files import replacing
from flows.cases.chosen import Chosen
from flows.cases.shown import Shown
from serving.overlays import nifti_bytes
from serving.static_files import FOLDER

INDEX = "index.html"
PAGE, SCRIPT = (Path(__file__).with_name(name) for name in ("cases.html", "cases.js"))
MODULES = ("viewer.js", "answers.js", "controls.js")  # of the service's page
COPIED = ("niivue.umd.js", "style.css", "LICENSES.txt")
KEPT = ("releases", "data")
IMPORT = re.compile(r'(from ")\./([a-z]+\.js")')


def require_new(output: Path) -> None:
    """Raises UserError where ``output`` holds something, or lies where a release and its data do."""
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise UserError(f"{output}: is there; allowed: the name of a new folder, or an empty one")
    for kept in KEPT:
        if output.resolve().is_relative_to(Path(kept).resolve()):
            raise UserError(f"{output}: in {kept}, which only a release writes; allowed: a folder elsewhere")


def write_page(output: Path, name: str, digest: str, cases: Iterable[tuple[Chosen, Shown]]) -> int:
    """Write the folder, whole or not at all; equal cases give equal bytes.

    Args:
        output: see :func:`require_new`.
        name, digest: of the release.
        cases: worked out one by one, for all at once may not fit into memory.

    Returns:
        How many cases.
    """
    with replacing(output) as temporary:
        (temporary / "volumes").mkdir(parents=True)
        volumes = _Volumes(temporary / "volumes")
        told = [_told(one, of, volumes) for one, of in cases]
        for file in COPIED:
            shutil.copyfile(FOLDER / file, temporary / file)
        parts = {"name": escape(name), "digest": escape(digest), "cases": _inert(told), "modules": _modules()}
        script = _bare(SCRIPT.read_text(encoding="utf-8"))
        page = Template(PAGE.read_text(encoding="utf-8")).substitute(parts, script=script)
        (temporary / INDEX).write_text(page, encoding="utf-8")
    return len(told)


class _Volumes:
    """The files of volumes; a scan that several cases show is there once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scans: dict[str, str] = {}
        self._count = 0

    def scan(self, name: str, shown: Shown) -> str:
        if name not in self._scans:
            self._scans[name] = self.write(nifti_bytes(shown.volume.hu, shown.volume.affine))
        return self._scans[name]

    def write(self, content: bytes) -> str:
        self._count += 1
        name = f"{self._count:03d}"
        text = base64.b64encode(content).decode()
        (self._folder / f"{name}.js").write_text(f'ctfoundryVolume("{name}", "{text}");\n', encoding="utf-8")
        return name


def _told(one: Chosen, shown: Shown, volumes: _Volumes) -> dict[str, Any]:
    masks = {layer: volumes.write(nifti_bytes(mask, shown.volume.affine)) for layer, mask in shown.masks.items()}
    return {
        "part": one.part,
        "kind": one.kind,
        "rank": one.rank,
        "case": one.case,
        "patient": one.patient,
        "label": one.label,
        "score": one.score,
        "point_mm": shown.point_mm,
        "scan": volumes.scan(one.volume, shown),
        "masks": masks,
        **shown.told,
    }


def _inert(content: object) -> str:
    """JSON that ends no script element, whatever names it holds."""
    return json.dumps(content, sort_keys=True, allow_nan=False).replace("<", "\\u003c")


def _bare(script: str) -> str:
    """A module that finds the others by the page's import map: a page from a disk may import no file."""
    return IMPORT.sub(r"\1\2", script)


def _modules() -> str:
    """The import map: each module as a data URL."""
    texts = {name: _bare((FOLDER / name).read_text(encoding="utf-8")) for name in MODULES}
    urls = {
        name: f"data:text/javascript;base64,{base64.b64encode(text.encode()).decode()}" for name, text in texts.items()
    }
    return json.dumps({"imports": urls})
