"""Who may promote, and whether a tag is theirs: Git's signatures, against the team's list on the remote's branch."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field

from components.errors import UserError
from components.settings import StageConfig, parse
from flows.processes import scratch_folder
from flows.promotion.tags import REMOTE, Tag
from flows.repository import TRUSTED, git

SETTINGS = "infra/promotion.yaml"
SIGNERS = "infra/allowed_signers"
_BY_SSH = re.compile(r'^Good "git" signature for (\S+) with', re.MULTILINE)
_BY_GPG = re.compile(r"^\[GNUPG:\] VALIDSIG ([0-9A-F]{40}).* ([0-9A-F]{40})$", re.MULTILINE)


class PromotionSettings(StageConfig):
    """``infra/promotion.yaml``.

    Attributes:
        signed: a stage tag without a signature of the team's is refused. Where false, whoever may push may promote.
        gpg_fingerprints: of keys whose GPG signatures count; SSH's are in ``infra/allowed_signers``.
    """

    signed: bool
    gpg_fingerprints: tuple[str, ...] = Field(default=())


@dataclass(frozen=True)
class Policy:
    """What the team has agreed on: the settings, and the text of its list of SSH signers."""

    settings: PromotionSettings
    signers: str


def team_policy() -> Policy:
    """Read from the remote's branch as it was last fetched: nobody changes it by an edit of a working tree. Raises
    ParamsError where the settings are not valid."""
    settings, signers = (_file(f"refs/remotes/{REMOTE}/HEAD", name) for name in (SETTINGS, SIGNERS))
    try:
        content = yaml.safe_load(settings) if settings else {"signed": True}
    except yaml.YAMLError as error:
        raise UserError(f"{SETTINGS}: not valid YAML: {' '.join(str(error).split())}") from None
    return Policy(parse(PromotionSettings, content, "", SETTINGS), signers)


def _file(ref: str, name: str) -> str:
    """'' where the branch has none."""
    return git("show", f"{ref}:{name}") if git("ls-tree", "--name-only", ref, name) else ""


def signer_of(tag: Tag, policy: Policy) -> str:
    """Who signed a stage tag: a principal of the team's list, or the fingerprint of a GPG key.

    Returns '' where the team asks for no signature and there is none.

    Raises:
        UserError: the tag is unsigned, damaged, or signed by somebody who is not on the list.
    """
    signed = "-----BEGIN " in git("cat-file", "tag", tag.own)
    if not signed:
        if policy.settings.signed:
            raise UserError(f"{tag.name}: not signed, by {tag.by}; allowed: signed by one whom {SIGNERS} lists")
        return ""
    with scratch_folder("ctfoundry-signers-") as folder:
        (folder / "allowed").write_text(policy.signers)
        said = _verified(tag, folder / "allowed")
    by_ssh, by_gpg = _BY_SSH.search(said), _BY_GPG.search(said)
    if by_ssh is not None:
        return by_ssh[1]
    allowed = {name.replace(" ", "").upper() for name in policy.settings.gpg_fingerprints}
    if by_gpg is not None and (found := {by_gpg[1], by_gpg[2]} & allowed):
        return found.pop()
    who = by_gpg[2] if by_gpg else tag.by
    raise UserError(
        f"{tag.name}: not signed by one who may promote ({who}); {SIGNERS} on {REMOTE}'s branch lists them, {SETTINGS} "
        "those with GPG"
    )


def _verified(tag: Tag, allowed: Path) -> str:
    """What Git says of a good signature; '' of any other."""
    command = ["git", *TRUSTED, "-c", f"gpg.ssh.allowedSignersFile={allowed}", "verify-tag", "--raw", tag.own]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + "\n" + done.stderr if done.returncode == 0 else ""
