"""Promotion and rollback: what was judged, signed, at once with the champion's files, and one at a time."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from published import LINE, Team, forget_cache, git

from components.errors import UserError
from components.gate.champion import read_champion
from flows.promotion import champions
from flows.promotion.champions import promote, require_champion, roll_back
from flows.promotion.signers import team_policy
from flows.promotion.tags import assignments, fetch

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen not found")


class Published(Team):
    """Two published versions; nobody may promote yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.first, self.second = self.publish("v1.0.0", 0.8), self.publish("v1.1.0", 0.9, steps=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("team"))


@pytest.fixture
def team(made: Published, tmp_path: Path) -> Published:
    return made.copied(tmp_path)


@pytest.fixture
def anna(team: Published, monkeypatch: pytest.MonkeyPatch) -> Path:
    clone = team.signer("anna")
    monkeypatch.chdir(clone)
    return clone


def test_champion_figures_served_image_and_drift_reference_move_together_and_back(team: Published, anna: Path) -> None:
    done = promote(LINE, "v1.0.0", "first one")
    assert (done.tag, done.by, done.replaced) == ("head#champion#1", "anna@localhost", None)
    first = team.champion()
    assert (first["bundle"], first["profile"]) == (team.first.digest, {"score": 0.8})
    assert first["served"]["bento"] == f"ctfoundry-head:{team.first.digest[:16]}"
    promote(LINE, "1.1.0", "better by 0.1")
    assert team.champion()["metrics"]["tasks"]["organs"]["linear_auc"] == 0.9
    back = roll_back(LINE, None, "drifts")
    assert (back.version.version, back.replaced and back.replaced.version) == ("v1.0.0", "v1.1.0")
    assert team.champion() == first
    assert team.tags() == ["head#champion#1", "head#champion#2", "head#champion#3"]
    assert [a.reason for a in assignments(LINE)] == ["first one", "better by 0.1", "rollback, drifts"]
    assert git(anna, "status", "--porcelain") == "", "nobody's working tree is touched"
    again = promote(LINE, "v1.0.0", "once more")
    assert again.commit == ""
    assert len(team.tags()) == 3


def test_a_clone_gets_the_champion_and_its_encoder_by_git_and_dvc(team: Published, anna: Path, tmp_path: Path) -> None:
    forget_cache(anna)
    promote(LINE, "v1.1.0", "good")
    other = team.clone("other")
    champion = read_champion(other / "infra" / "champions" / f"{LINE}.json")
    assert champion is not None
    team.dvc(other, "pull", f"infra/champions/{LINE}.encoder.dvc")
    assert sorted(champion["encoder"]) == sorted(p.name for p in (other / "infra/champions/head.encoder").iterdir())
    assert git(other, "status", "--porcelain") == "", "the encoder is ignored by git"


def test_gto_reads_the_signed_tags(team: Published, anna: Path) -> None:
    promote(LINE, "v1.1.0", "good")
    said = subprocess.run(["gto", "show", f"{LINE}#champion"], capture_output=True, text=True, check=True).stdout
    assert "v1.1.0" in said


def test_of_two_at_once_one_wins_and_the_other_is_told_by_whom(
    team: Published, anna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ben = team.signer("ben")
    before_push = champions._pushed

    def late(commit: str, tag: str) -> str | None:
        monkeypatch.setattr(champions, "_pushed", before_push)
        monkeypatch.chdir(ben)
        promote(LINE, "v1.0.0", "mine")
        monkeypatch.chdir(anna)
        return before_push(commit, tag)

    monkeypatch.setattr(champions, "_pushed", late)
    with pytest.raises(UserError, match=r"^head@v1.1.0: not promoted: ben <ben@localhost> was first and made head@v1"
                                        r".0.0 the champion \(head#champion#1: mine\); nothing of yours"):  # fmt: skip
        promote(LINE, "v1.1.0", "mine")
    assert team.champion()["bundle"] == team.first.digest
    assert git(anna, "rev-parse", "head#champion#1") == git(team.origin, "rev-parse", "head#champion#1")
    promote(LINE, "v1.1.0", "now knowing of ben's")
    assert team.champion()["bundle"] == team.second.digest


def test_a_branch_that_moves_for_another_reason_costs_another_attempt_only(
    team: Published, anna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, moved = champions._pushed, threading.Event()

    def late(commit: str, tag: str) -> str | None:
        if not moved.is_set():
            moved.set()
            git(team.publisher, "pull", "-q", "origin", "main")
            git(team.publisher, "commit", "-q", "--allow-empty", "-m", "meanwhile")
            git(team.publisher, "push", "-q", "origin", "HEAD:main")
        return push(commit, tag)

    monkeypatch.setattr(champions, "_pushed", late)
    promote(LINE, "v1.1.0", "good")
    assert "meanwhile" in git(team.origin, "log", "--format=%s", "main")
    assert team.champion()["bundle"] == team.second.digest


def test_neither_is_pushed_where_the_remote_refuses_one(team: Published, anna: Path) -> None:
    hook = team.origin / "hooks" / "update"
    hook.write_text('#!/bin/sh\ncase "$1" in refs/heads/main) echo "main is protected" >&2; exit 1;; esac\n')
    hook.chmod(0o755)
    with pytest.raises(UserError, match=r"^head@v1.1.0: not promoted: origin refused it: .*main is protected"):
        promote(LINE, "v1.1.0", "good")
    assert team.tags() == []
    assert git(anna, "tag", "--list", "head#*") == ""


def test_who_cannot_sign_or_is_not_on_the_list_promotes_nothing(
    team: Published, anna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(team.clone("carl"))
    with pytest.raises(UserError, match=r"^head#champion#1: Git does not sign here"):
        promote(LINE, "v1.1.0", "good")
    stranger = team.signer("dora", allowed=False)
    monkeypatch.chdir(stranger)
    (stranger / "infra" / "promotion.yaml").write_text("signed: false\n")  # an edit of one's own changes nothing
    with pytest.raises(UserError, match=r"^head#champion#1: not signed by one who may promote \(dora <dora@"):
        promote(LINE, "v1.1.0", "good")
    assert team.tags() == []
    assert git(stranger, "tag", "--list", "head#*") == ""


def test_an_unsigned_or_copied_stage_tag_is_no_champion(team: Published, anna: Path) -> None:
    promote(LINE, "v1.1.0", "good")
    version, by = require_champion(LINE, team_policy())
    assert (version.version, by) == ("v1.1.0", "anna@localhost")
    git(anna, "tag", "-a", "-m", "champion head@v1.0.0: quietly", "head#champion#2", "head@v1.0.0^{}")
    with pytest.raises(UserError, match=r"^head#champion#2: not signed, by anna"):
        require_champion(LINE, team_policy())
    git(anna, "update-ref", "refs/tags/head#champion#2", "head#champion#1")
    with pytest.raises(UserError, match=r"^refs/tags/head#champion#2: the tag was made as 'head#champion#1'"):
        require_champion(LINE, team_policy())
    fetch(LINE)
    assert git(anna, "tag", "--list", "head#*") == "head#champion#1", "what the remote does not have is gone"


def test_a_team_may_do_without_signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(tmp_path, signed=False)
    team.publish("v1.0.0", 0.8)
    monkeypatch.chdir(team.clone("carl"))
    assert promote(LINE, "v1.0.0", "good").by == ""
    assert require_champion(LINE, team_policy())[1] == ""


def test_another_bundle_than_the_tag_names_is_refused(team: Published, anna: Path) -> None:
    clone = team.publisher
    digest = team.second.digest
    git(clone, "tag", "-a", "-m", f"v2\n\nbundle {digest}\ngates pass", "head@v2.0.0", "head@v1.0.0^{}")
    git(clone, "push", "-q", "origin", "head@v2.0.0")
    with pytest.raises(UserError, match=rf"^head@v2.0.0: names bundle {digest[:16]} of line head, and its commit"):
        promote(LINE, "v2.0.0", "swapped")
    with pytest.raises(UserError, match=r"^head@v1.1.0: names bundle .*; approved was " + team.first.digest[:16]):
        promote(LINE, "v1.1.0", "approved as another", judged=team.first.digest)
    assert team.tags() == []


def test_a_tampered_file_and_a_missing_one_are_named(team: Published, anna: Path) -> None:
    forget_cache(anna)
    for stored in team.remote.rglob("*"):
        if stored.is_file() and b"AUC 0.9" in stored.read_bytes():
            stored.chmod(0o644)
            stored.write_bytes(stored.read_bytes().replace(b"0.9", b"1.0"))
    with pytest.raises(UserError, match=r"MODEL_CARD.md"):
        promote(LINE, "v1.1.0", "good")
    shutil.rmtree(team.remote)
    with pytest.raises(UserError, match=r"^releases/head of head@v1.0.0: neither in this machine's DVC cache nor at"):
        promote(LINE, "v1.0.0", "good")
    assert team.tags() == []


def test_a_moved_version_is_refused_here_and_by_those_who_never_saw_the_first(
    team: Published, anna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(LINE, "v1.1.0", "good")
    clone, tag = team.publisher, "head@v1.1.0"
    message = f"v1.1.0\n\nbundle {team.first.digest}\ngates pass"
    git(clone, "tag", "-f", "-a", "-m", message, tag, "head@v1.0.0^{}")
    git(clone, "push", "-q", "-f", "origin", tag)
    with pytest.raises(UserError, match=rf"^{tag}: moved: tag \w+ here, \w+ at origin; a version never moves"):
        promote(LINE, "v1.1.0", "again")
    newcomer = team.signer("ben")
    monkeypatch.chdir(newcomer)
    fetch(LINE)
    with pytest.raises(UserError, match=r"^head#champion#1: promoted bundle .*a version's tag was moved since"):
        require_champion(LINE, team_policy())


def test_what_is_no_version_is_told(team: Published, anna: Path) -> None:
    with pytest.raises(UserError, match=r"version 'v3' is not known; published are: v1.0.0, v1.1.0"):
        promote(LINE, "v3", "good")
    git(team.publisher, "tag", "head@v3.0.0", "main")
    git(team.publisher, "push", "-q", "origin", "head@v3.0.0")
    with pytest.raises(UserError, match=r"^head@v3.0.0: a lightweight tag"):
        promote(LINE, "v3.0.0", "good")
    with pytest.raises(UserError, match=r"^--reason 'a\\nb' is not allowed"):
        promote(LINE, "v1.0.0", "a\nb")
    with pytest.raises(UserError, match=r"^line head: no champion before the present one"):
        roll_back(LINE, None, "")


def test_a_remote_whose_head_names_no_branch_is_told_with_its_cure(team: Published, anna: Path) -> None:
    """As `git init --bare` leaves it, where Git's default branch is another than the team's."""
    git(team.origin, "symbolic-ref", "HEAD", "refs/heads/master")
    with pytest.raises(UserError, match=r"HEAD names no branch .*`git symbolic-ref HEAD refs/heads/<branch>`$"):
        promote(LINE, "v1.0.0", "good")
