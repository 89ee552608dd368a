"""The champion as a Bento on this machine: found by the tags, pulled by digest, built from its own commit's code."""

from __future__ import annotations

import tarfile
from pathlib import Path

from components.bundle.inputs import SOURCE_PACKAGES
from components.bundle.manifest import read_manifest
from components.errors import UserError
from flows.processes import scratch_folder
from flows.promotion.champions import require_champion
from flows.promotion.contents import pulled
from flows.promotion.signers import team_policy
from flows.promotion.tags import Version, fetch
from flows.repository import git
from serving.build import BUNDLE, REQUIREMENTS, bento_path, bento_tag, build_bento


def champion_bento(line: str, offline: bool = False) -> str:
    """The tag of the champion's Bento, which is in the store afterwards.

    Args:
        line: model line.
        offline: by the tags as this clone knows them.

    Raises:
        UserError: no champion, or none that the team signed for; its bundle is not at hand, or not what was judged.
    """
    if not offline:
        fetch(line)
    version, _ = require_champion(line, team_policy())
    with scratch_folder("ctfoundry-champion-") as scratch:
        return _known(version) or _built(version, scratch)


def _known(version: Version) -> str | None:
    """Its tag in the store, where it is there. The digest is compared in full: a tag has a part of it."""
    tag = f"ctfoundry-{version.line}:{version.digest[:16]}"
    bento = bento_path(tag)
    if bento is None:
        return None
    found = read_manifest(bento / "src" / BUNDLE)
    if (found.digest, bento_tag(found)) != (version.digest, tag):
        raise UserError(f"bento {tag}: holds bundle {found.digest}, not {version.digest} of {version.name}; delete it")
    return tag


def _built(version: Version, scratch: Path) -> str:
    pulled(version, scratch)
    code = scratch / "code"
    archive = scratch / "code.tar"
    parts = [*SOURCE_PACKAGES, str(Path(REQUIREMENTS).parent)]
    git("archive", "--format=tar", f"--output={archive}", version.commit, "--", *parts)
    with tarfile.open(archive) as stream:
        stream.extractall(code, filter="data")
    return build_bento(scratch / version.line, {"git_commit": version.commit, "git_changed": "no"}, code)
