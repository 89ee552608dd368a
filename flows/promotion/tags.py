"""Versions and champions of a line as Git's tags have them, in the names of GTO.

``head@v1.2.0`` is a version: annotated, its message names the bundle's digest and the verdict of the gates.
``head#champion#7`` is the seventh assignment: whichever version lies at its commit is the champion since.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from components.errors import UserError
from flows.repository import git

REMOTE = "origin"
STAGE = "champion"
_HEAD = f"refs/remotes/{REMOTE}/HEAD"
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)(-[0-9A-Za-z.-]+)?")
_STAGE = re.compile(rf"#{STAGE}(?P<cancelled>!?)#(?P<number>\d+)")
_BUNDLE = re.compile(r"\bbundle:? ([0-9a-f]{64})\b")
_GATES = re.compile(r"\bgates:? (\w+)")
_FIELDS = ("refname", "objecttype", "objectname", "*objectname", "tag", "taggername", "taggeremail",
           "taggerdate:iso-strict", "contents:subject", "contents:body")  # fmt: skip


@dataclass(frozen=True)
class Tag:
    """An annotated tag. ``commit`` is what it is of, ``own`` the hash of the tag itself."""

    name: str
    own: str
    commit: str
    by: str
    date: datetime
    message: str


@dataclass(frozen=True)
class Version:
    """A release that was published. ``gates``: their verdict, as the tag's message has it; '' where it has none."""

    line: str
    version: str
    digest: str
    gates: str
    tag: Tag

    @property
    def name(self) -> str:
        return self.tag.name

    @property
    def commit(self) -> str:
        return self.tag.commit


@dataclass(frozen=True)
class Assignment:
    """A champion of the line, since ``tag.date``; ``version`` is None where the line was left without one."""

    number: int
    version: Version | None
    tag: Tag

    @property
    def reason(self) -> str:
        """Why, as whoever assigned it wrote it."""
        return self.tag.message.partition("\n")[0].partition(": ")[2]


def fetch(line: str) -> None:
    """Bring the line's tags and the remote's branch. Stage tags become the remote's, also where ours are others: a tag
    of ours that lost a race would shadow the truth. A version never moves.

    Raises:
        UserError: the remote does not answer, or a version's tag is another there than here.
    """
    require_remote()
    main = _default_branch()
    git("fetch", "--quiet", "--no-tags", "--prune", REMOTE, f"+refs/tags/{line}#*:refs/tags/{line}#*")
    git("fetch", "--quiet", "--no-tags", REMOTE, f"+refs/heads/{main}:refs/remotes/{REMOTE}/{main}")
    git("symbolic-ref", _HEAD, f"refs/remotes/{REMOTE}/{main}")
    there = dict(_remote_tags(line))
    for name, own in _local_tags(line).items():
        if there.get(name, own) != own:
            raise UserError(
                f"{name}: moved: tag {own[:12]} here, {there[name][:12]} at {REMOTE}; a version never moves: ask who "
                f"moved it, and make a new version. If the remote's is right, `git tag -d {name}` and run this again"
            )
    git("fetch", "--quiet", "--no-tags", REMOTE, f"refs/tags/{line}@*:refs/tags/{line}@*")


def require_remote() -> None:
    """Raise UserError where there is nobody to agree with on who the champion is."""
    if REMOTE not in git("remote").splitlines():
        raise UserError(f"git remote {REMOTE!r}: not there; releases and champions are tags there: `git remote add`")


def branch() -> str:
    """The remote's branch, as a rule ``main``, as :func:`fetch` last saw it."""
    return git("symbolic-ref", _HEAD).removeprefix(f"refs/remotes/{REMOTE}/")


def _default_branch() -> str:
    found = re.search(r"^ref: refs/heads/(\S+)\s+HEAD$", git("ls-remote", "--symref", REMOTE, "HEAD"), re.MULTILINE)
    if found is None:
        raise UserError(
            f"git remote {REMOTE!r}: its HEAD names no branch that is there; push one, or there: "
            "`git symbolic-ref HEAD refs/heads/<branch>`"
        )
    return found[1]


def versions(line: str) -> list[Version]:
    """Published versions, the lowest first. Tags that are no version's are passed over."""
    found = [version for tag in _tags(f"refs/tags/{line}@*") if (version := _version(line, tag)) is not None]
    return sorted(found, key=lambda version: _order(version.version))


def find_version(line: str, wanted: str) -> Version:
    """The version of this number, as ``v1.2.0``, ``1.2.0`` or ``head@v1.2.0``.

    Raises:
        UserError: there is none, or its tag does not say which bundle it is of.
    """
    name = f"v{wanted.removeprefix(f'{line}@').removeprefix('v')}"
    found = {version.version: version for version in versions(line)}
    if name in found:
        return found[name]
    if any(tag.name == f"{line}@{name}" for tag in _tags(f"refs/tags/{line}@*")):
        raise UserError(f"{line}@{name}: its message names no bundle; allowed: `bundle <SHA-256>`, as `publish` writes")
    if git("tag", "--list", f"{line}@{name}"):
        raise UserError(f"{line}@{name}: a lightweight tag; allowed: an annotated one, as `publish` makes it")
    known = ", ".join(list(found)[-8:]) or "none"
    raise UserError(f"line {line}: version {wanted!r} is not known; published are: {known}")


def assignments(line: str) -> list[Assignment]:
    """Who was champion, the first one first."""
    by_commit: dict[str, list[Version]] = {}
    for version in versions(line):
        by_commit.setdefault(version.commit, []).append(version)
    found = []
    for tag in _tags(f"refs/tags/{line}#*"):
        told = _STAGE.fullmatch(tag.name.removeprefix(line))
        if told is None:
            continue
        here = by_commit.get(tag.commit, [])
        first = tag.message.partition("\n")[0].replace(":", " ").split()
        chosen = [version for version in here if version.name in first] or here  # GTO's own tags name none
        assigned = None if told["cancelled"] or not chosen else chosen[-1]
        found.append(Assignment(int(told["number"]), assigned, tag))
    return sorted(found, key=lambda assignment: assignment.number)


def next_number(line: str) -> int:
    """Of the next stage tag: GTO counts all stages of a line together."""
    numbers = re.findall(rf"^{line}#[^#]+#(\d+)$", git("tag", "--list", f"{line}#*"), re.MULTILINE)
    return max(map(int, numbers), default=0) + 1


def _version(line: str, tag: Tag) -> Version | None:
    version = tag.name.removeprefix(f"{line}@")
    bundle, gates = _BUNDLE.search(tag.message), _GATES.search(tag.message)
    if bundle is None or not _VERSION.fullmatch(version):
        return None
    return Version(line, version, bundle[1], gates[1] if gates else "", tag)


def _order(version: str) -> tuple[int, int, int, bool, str]:
    """As semantic versions are ordered; one with a suffix comes before the same without."""
    told = _VERSION.fullmatch(version)
    assert told is not None
    return int(told[1]), int(told[2]), int(told[3]), told[4] is None, told[4] or ""


def _tags(pattern: str) -> list[Tag]:
    """Annotated tags. One whose ref has another name than was written into it is a copy, and no tag of this name."""
    form = "%00".join(f"%({field})" for field in _FIELDS) + "%01"
    found = []
    for record in git("for-each-ref", f"--format={form}", pattern).split("\x01"):
        values = record.strip("\n").split("\0")
        if len(values) != len(_FIELDS) or values[1] != "tag":
            continue
        name, _, own, commit, written, by, mail, date, subject, body = values
        if name != f"refs/tags/{written}":
            raise UserError(f"{name}: the tag was made as {written!r} and put here under another name; remove it")
        message = f"{subject}\n\n{body}".strip()
        found.append(Tag(written, own, commit, f"{by} {mail}", datetime.fromisoformat(date), message))
    return found


def _remote_tags(line: str) -> list[tuple[str, str]]:
    """Name and hash of the line's versions at the remote."""
    rows = (row.split("\t") for row in git("ls-remote", "--tags", "--refs", REMOTE, f"{line}@*").splitlines())
    return [(ref.removeprefix("refs/tags/"), own) for own, ref in rows]


def _local_tags(line: str) -> dict[str, str]:
    rows = git("for-each-ref", "--format=%(refname)%00%(objectname)", f"refs/tags/{line}@*").splitlines()
    return {ref.removeprefix("refs/tags/"): own for ref, own in (row.split("\0") for row in rows)}
