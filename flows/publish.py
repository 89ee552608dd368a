"""Publish a release: its data to DVC's remote, a commit of its lock file on a branch of its own, and a version's tag.

The tag is GTO's (``wholebody@v1.2.0``, annotated), so that GTO's and DVC's commands read it. Branch and tag are pushed
at once, or neither; of two who publish the same version, one is told. The checkout's own branch, index and files stay
as they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gto.api
import yaml
from dvc.config import Config
from gto.exceptions import GTOException
from gto.versions import SemVer

from components.bundle.signature import signature_file, verify_release
from components.errors import UserError
from components.files import STATE, read_json, replacing
from flows.graph import stages_for
from flows.processes import started
from flows.repository import changed_files, git
from flows.verify import CARRIED

REMOTE = "origin"
KEPT = STATE / "published"
AUTHOR = {"NAME": "ctfoundry", "EMAIL": "ctfoundry@localhost"}  # where git knows nobody
Bump = Literal["patch", "minor", "major"]


@dataclass(frozen=True)
class Published:
    """A version of a line.

    Attributes:
        tag: ``<line>@v<version>``.
        branch: on the remote, with the commit that holds the release's parameters and lock file.
        commit, digest: hex; of the commit and of the bundle.
        new: False where the line's newest version is this very release already, and its publication came to an end.
    """

    line: str
    tag: str
    branch: str
    commit: str
    digest: str
    new: bool


def publish(line: str, bump: Bump = "patch", tell: Callable[[str], None] = print) -> Published:
    """Publish the present release of a line.

    Args:
        line: model line.
        bump: which part of the version grows.
        tell: told each line that DVC prints.

    Raises:
        UserError: there is no release, code differs from the commit, no git remote, or a push failed; says which.
            Neither branch nor tag is then there.
    """
    folder = Path("releases") / line
    if not (folder / "manifest.json").is_file():
        raise UserError(f"publish: no release of line {line} in {folder}; run `make release LINE={line}` first")
    digest = verify_release(folder).manifest.digest
    if other := [name for name in changed_files() if name not in CARRIED]:
        raise UserError(f"publish: {other[0]} differs from the commit: a release is published of committed code")
    fetch_versions(line)
    last = newest(line)
    if last is not None and _bundle_of(git("show", f"{last}:dvc.lock"), line) == _bundle_of(_lock(), line):
        return Published(line, last, _branch(last), git("rev-parse", f"{last}^{{}}"), digest, new=_finished(line, last))
    push_data(line, tell)
    version = SemVer((last or "@v0.0.0").rpartition("@")[2]).bump(**{f"bump_{bump}": True}).version
    tag = f"{line}@{version}"
    commit = commit_carried(f"Release {tag}: bundle {digest[:16]}")
    decision = folder / "decision.json"
    gates = f", gates {read_json(decision)['verdict']}" if decision.is_file() else ""
    _tag_and_push(line, tag, commit, f"bundle {digest}{gates}")
    _keep_reports(line, version)
    return Published(line, tag, _branch(tag), commit, digest, new=True)


def _finished(line: str, tag: str) -> bool:
    """Finish what a run of this very commit began that was killed between its push and its end; False where nothing
    was left to do."""
    version = tag.rpartition("@")[2]
    if (KEPT / line / version).is_dir() or git("rev-parse", f"{tag}~") != git("rev-parse", "HEAD"):
        return False
    _keep_reports(line, version)
    return True


def fetch_versions(line: str) -> None:
    """Bring the versions that the remote knows. Raises UserError also where one was moved: a version never moves."""
    git("fetch", "--quiet", "--no-tags", REMOTE, f"refs/tags/{line}@*:refs/tags/{line}@*")


def newest(line: str) -> str | None:
    """The tag of a line's newest version that git knows here; None where there is none."""
    tags = git("tag", "--list", "--sort=-version:refname", f"{line}@v*").splitlines()
    return next((tag for tag in tags if SemVer.is_valid(tag.rpartition("@")[2])), None)


def push_data(line: str, tell: Callable[[str], None]) -> None:
    """The line's outputs, and DVC's memory of its runs, to the default remote; nothing where there is none.

    Raises:
        UserError: as :func:`push_stages`.
    """
    if not has_remote():
        tell("publish: no DVC remote is set: data stay in this machine's cache")
        return
    stages = [node.name for node in stages_for(f"bundle@{line}")]
    push_stages(stages, tell)
    dvc(["push", "--run-cache", *stages], tell)  # last: what it names is to be there


def has_remote() -> bool:
    """Whether DVC has a default remote here."""
    return bool(Config.from_cwd()["core"].get("remote"))


def push_stages(stages: list[str], tell: Callable[[str], None]) -> None:
    """The outputs of these stages to DVC's remote. Raises UserError: DVC failed, or one is not there to be pushed."""
    dvc(["push", *stages], tell)
    # A push warns of what is missing here and there, and ends well.
    told = dvc(["status", "--cloud", *stages], lambda text: None)
    if not any("in sync" in text for text in told):
        raise UserError(f"the remote lacks outputs: {' | '.join(told[:4])}")


def dvc(arguments: list[str], tell: Callable[[str], None]) -> list[str]:
    """Run DVC to its end; returns what it said. Raises UserError where it failed."""
    said = []
    with started(["dvc", "--wait-for-lock", *arguments]) as (process, lines):
        for text in lines:
            said.append(text)
            tell(text)
    if process.returncode != 0:
        raise UserError(f"dvc {arguments[0]} failed: {' | '.join(said[-3:])}")
    return said


def _branch(tag: str) -> str:
    line, _, version = tag.partition("@")
    return f"release/{line}/{version}"


def _lock() -> str:
    return Path("dvc.lock").read_text(encoding="utf-8") if Path("dvc.lock").is_file() else ""


def _bundle_of(lock: str, line: str) -> str | None:
    """The hash of a release folder in the text of a ``dvc.lock``."""
    stages = (yaml.safe_load(lock) or {}).get("stages", {})
    outs = stages.get(f"bundle@{line}", {}).get("outs", [])
    return next((str(out["md5"]) for out in outs if out["path"] == f"releases/{line}"), None)


def commit_carried(message: str) -> str:
    """The present commit with this checkout's parameters and lock file; made in an index of its own."""
    with tempfile.TemporaryDirectory(prefix="ctfoundry-index-") as folder:
        own = {**somebody(), "GIT_INDEX_FILE": str(Path(folder) / "index")}
        git("read-tree", "HEAD", **own)
        git("add", "--", *(name for name in CARRIED if Path(name).is_file()), **own)
        return git("commit-tree", "-p", "HEAD", "-m", message, git("write-tree", **own), **own)


def somebody() -> dict[str, str]:
    """Whom git names as the author and committer: as it is told, or ourselves."""
    found = {}
    for role in ("AUTHOR", "COMMITTER"):
        for what, ours in AUTHOR.items():
            name = f"GIT_{role}_{what}"
            found[name] = os.environ.get(name) or git("config", "--default", ours, "--get", f"user.{what.lower()}")
    return found


def _tag_and_push(line: str, tag: str, commit: str, message: str) -> None:
    who = somebody()
    try:
        gto.api.register(
            ".", line, commit, version=tag.rpartition("@")[2], message=message,
            author=who["GIT_AUTHOR_NAME"], author_email=who["GIT_AUTHOR_EMAIL"],
        )  # fmt: skip
    except GTOException as error:
        raise UserError(f"publish: {tag}: {error}") from None
    try:
        git("push", "--quiet", "--atomic", REMOTE, f"{commit}:refs/heads/{_branch(tag)}", f"refs/tags/{tag}")
    except BaseException as error:
        git("tag", "--delete", tag)  # one that only we know would hide the truth
        if isinstance(error, UserError):
            raise UserError(f"publish: {tag} was not taken: {error}; publish again") from None
        raise


def _keep_reports(line: str, version: str) -> None:
    """What people read of a release, and its signature, outlive the workspace."""
    data, bundle = Path("data") / line, Path("releases") / line
    read = [Path("reports") / line, data / "evaluate" / "report.html", bundle.with_name(f"{line}.attestation.json"),
            signature_file(bundle)]  # fmt: skip
    with replacing(KEPT / line / version) as kept:
        kept.mkdir(parents=True)
        for path in read:
            if path.is_dir():
                shutil.copytree(path, kept / path.name)
            elif path.is_file():
                shutil.copyfile(path, kept / path.name)
