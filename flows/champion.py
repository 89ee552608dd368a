"""The champion: the release that later ones must not fall behind.

Its figures and its training set's data profile are tracked in ``infra/champions``, so that a fresh clone has them.
"""

from __future__ import annotations

from pathlib import Path

from components.bundle.manifest import verify_bundle
from components.files import read_json, write_json
from components.params import UserError


def _file(line: str) -> Path:
    return Path("infra/champions") / f"{line}.json"


def promote(line: str) -> str:
    """Make the bundle in ``releases/<line>`` the champion. Raises UserError where there is none, or it is damaged."""
    folder = Path("releases") / line
    if not (folder / "manifest.json").is_file():
        raise UserError(f"promote: no release of line {line} in {folder}; run `make release LINE={line}` first")
    manifest = verify_bundle(folder)
    metrics = read_json(folder / "metrics.json")
    champion = {"bundle": manifest.digest, "evaluation_data": metrics["evaluation_data"], "metrics": metrics}
    profile = folder / "profile.json"  # a release made by an earlier version has none
    champion["profile"] = read_json(profile) if profile.is_file() else None
    write_json(_file(line), {"champion": champion})
    return f"{_file(line)}: champion is bundle {manifest.digest[:16]}; commit this file"


def unset(line: str) -> str:
    """Leave the line without a champion."""
    write_json(_file(line), {"champion": None})
    return f"{_file(line)}: no champion; commit this file"
