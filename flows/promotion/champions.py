"""A promotion: the champion's files and a signed stage tag, pushed together or not at all, if nobody was first.

Champion, served image and reference of drift move in this one step, back as well as forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.errors import UserError
from flows.processes import scratch_folder
from flows.promotion.champion_files import champion_files, committed, main_ref
from flows.promotion.contents import pulled
from flows.promotion.signers import Policy, signer_of, team_policy
from flows.promotion.tags import (
    REMOTE,
    STAGE,
    Assignment,
    Version,
    assignments,
    branch,
    fetch,
    find_version,
    next_number,
)
from flows.repository import git

ATTEMPTS = 5  # another line's promotion moves the branch as well
REASON_LENGTH = 500
TO_SIGN = "`git config gpg.format ssh` and `git config user.signingkey <your key>.pub`, or GPG's user.signingkey"


@dataclass(frozen=True)
class Promoted:
    """What came of a promotion.

    Attributes:
        version: the champion.
        tag: its stage tag.
        by: who signed it; '' where no signature is asked for.
        commit: on the remote's branch, with the champion's files; '' where it was the champion already.
        replaced: the champion before.
    """

    version: Version
    tag: str
    by: str
    commit: str
    replaced: Version | None


def champion(line: str) -> Assignment | None:
    """The last assignment, as this clone knows it; None where the line never had a champion."""
    return next(iter(reversed(assignments(line))), None)


def require_champion(line: str, policy: Policy) -> tuple[Version, str]:
    """The version in use, and who signed for it.

    Raises:
        UserError: there is none, its stage tag is not signed as the team wants it, or the version's tag is not any
            more what was promoted.
    """
    now = champion(line)
    if now is None or (now.version is None and "!" in now.tag.name):
        raise UserError(f"line {line}: no champion yet; make one with `ctfoundry promote {line} VERSION --reason TEXT`")
    by = signer_of(now.tag, policy)
    told = _told(now)
    if now.version is None or told.get("bundle", now.version.digest) != now.version.digest:
        raise UserError(
            f"{now.tag.name}: promoted bundle {told.get('bundle', 'unknown')[:16]}, commit {now.tag.commit[:12]}; "
            f"there is {now.version.name if now.version else 'no version'} now: a version's tag was moved since"
        )
    return now.version, by


def promote(line: str, wanted: str, reason: str, judged: str | None = None) -> Promoted:
    """Make a version the champion.

    Args:
        line: model line.
        wanted: version, such as ``v1.2.0``.
        reason: one line, which stays in the tag.
        judged: digest of the bundle that somebody approved; another one is refused.

    Raises:
        UserError: the version or its bundle is not what was judged, the signature is missing or not of the team's, or
            somebody else was first; then nothing has changed, here or at the remote.
    """
    reason = _allowed(reason)
    fetch(line)
    version = find_version(line, wanted)
    if judged not in (None, version.digest):
        raise UserError(f"{version.name}: names bundle {version.digest[:16]}; approved was {str(judged)[:16]}")
    return _assigned(version, reason)


def roll_back(line: str, wanted: str | None, reason: str) -> Promoted:
    """Make an earlier version the champion again; the one before the present where none is named. Raises as
    :func:`promote`."""
    reason = _allowed(f"rollback, {reason}" if reason else "rollback")
    fetch(line)
    if wanted is not None:
        return _assigned(find_version(line, wanted), reason)
    were = [assignment.version for assignment in assignments(line)]
    before = next((version for version in reversed(were) if version is not None and version != were[-1]), None)
    if before is None:
        raise UserError(
            f"line {line}: no champion before the present one; name a version: `ctfoundry releases list {line}`"
        )
    return _assigned(before, reason)


def _allowed(reason: str) -> str:
    reason = reason.strip()
    if not reason or len(reason) > REASON_LENGTH or not reason.isprintable():
        raise UserError(f"--reason {reason[:40]!r} is not allowed: one line of 1 to {REASON_LENGTH} characters")
    return reason


def _assigned(version: Version, reason: str) -> Promoted:
    line, policy = version.line, team_policy()
    before = champion(line)
    replaced = before.version if before else None
    if before and replaced == version:
        by = require_champion(line, policy)[1]
        return Promoted(version, before.tag.name, by, "", replaced)
    with scratch_folder("ctfoundry-promote-") as scratch:
        verified = pulled(version, scratch)
        files = champion_files(version, scratch / line, verified.manifest, scratch / "files")
        for _ in range(ATTEMPTS):
            base = git("rev-parse", main_ref(branch()))
            subject = f"{STAGE} {version.name}: {reason}"
            commit = committed(base, files, [f"/{line}.encoder"], subject, scratch / "index")
            tag, by = _own_tag(version, subject, replaced, policy)
            said = _pushed(commit, tag)
            if said is None:
                return Promoted(version, tag, by, commit, replaced)
            _see_who_was_first(version, before, base, said)
    raise UserError(f"{version.name}: {REMOTE}'s branch moved {ATTEMPTS} times meanwhile; run this again")


def _own_tag(version: Version, subject: str, replaced: Version | None, policy: Policy) -> tuple[str, str]:
    """Make the stage tag, of the version's commit as GTO wants it. Returns its name and who signed it."""
    name = f"{version.line}#{STAGE}#{next_number(version.line)}"
    body = f"bundle {version.digest}\ncommit {version.commit}\nreplaces {replaced.name if replaced else 'nothing'}"
    try:
        how = "--sign" if policy.settings.signed else "--annotate"
        git("tag", how, "--message", subject, "--message", body, name, version.commit)
    except UserError as error:
        raise UserError(f"{name}: Git does not sign here ({error}); set {TO_SIGN}") from None
    try:
        (own,) = (assignment.tag for assignment in assignments(version.line) if assignment.tag.name == name)
        return name, signer_of(own, policy)
    except BaseException:
        git("tag", "--delete", name)
        raise


def _pushed(commit: str, tag: str) -> str | None:
    """Push both or neither. Returns what Git said where they were not taken; our tag is gone then."""
    refs = (f"{commit}:refs/heads/{branch()}", f"refs/tags/{tag}:refs/tags/{tag}")
    try:
        git("push", "--quiet", "--atomic", REMOTE, *refs)
        return None
    except BaseException as error:
        git("tag", "--delete", tag)
        if isinstance(error, UserError):
            return str(error)
        raise


def _see_who_was_first(version: Version, before: Assignment | None, base: str, said: str) -> None:
    """Raise UserError unless another try may succeed: only the branch has moved."""
    line = version.line
    fetch(line)
    now = champion(line)
    if now is not None and (before is None or now.number != before.number):
        won = now.version.name if now.version else "another"
        raise UserError(
            f"{version.name}: not promoted: {now.tag.by} was first and made {won} the champion ({now.tag.name}: "
            f"{now.reason}); nothing of yours was pushed"
        )
    if git("rev-parse", main_ref(branch())) == base and "lock" not in said:
        raise UserError(f"{version.name}: not promoted: {REMOTE} refused it: {said}")


def _told(assignment: Assignment) -> dict[str, str]:
    """``bundle``, ``commit`` and ``replaces`` of a stage tag's message; GTO's own tags have none."""
    rows = (row.partition(" ") for row in assignment.tag.message.splitlines()[1:])
    return {key: value for key, _, value in rows if value}
