"""A version is there for everybody, with its branch, or for nobody."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from components.bundle.manifest import write_manifest
from components.errors import UserError
from components.files import write_text
from flows import publish as publishing
from flows.publish import newest, publish

LINE = "wholebody"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def release(folder: Path, weights: str) -> None:
    """A release as a run leaves it: the folder, and its hash in the lock file."""
    write_text(folder / "releases" / LINE / "weights.txt", weights)
    (folder / "releases" / LINE / "manifest.json").unlink(missing_ok=True)
    write_manifest(folder / "releases" / LINE, LINE, "a model", {})
    out = {"path": f"releases/{LINE}", "md5": weights}
    write_text(folder / "dvc.lock", yaml.safe_dump({"stages": {f"bundle@{LINE}": {"outs": [out]}}}))


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``team.git`` and two clones of it, ``one`` and ``two``, each with a release; we are in ``one``."""
    seed = tmp_path / "seed"
    seed.mkdir()
    for name, text in {"params.yaml": "lines: []\n", ".gitignore": "releases\n.ctfoundry\n", "code.py": ""}.items():
        write_text(seed / name, text)
    git(seed, "init", "-q", "-b", "main")
    git(seed, "add", "-A")
    git(seed, "commit", "-qm", "code")
    git(tmp_path, "clone", "-q", "--bare", "seed", "team.git")
    for name in ("one", "two"):
        git(tmp_path, "clone", "-q", "team.git", name)
        release(tmp_path / name, name)
    monkeypatch.setattr(publishing, "push_data", lambda line, tell: None)
    monkeypatch.chdir(tmp_path / "one")
    return tmp_path


def test_a_version_is_a_tag_and_a_branch_and_touches_no_file(team: Path) -> None:
    before = git(Path(), "status", "--porcelain"), git(Path(), "rev-parse", "HEAD")
    made = publish(LINE)
    assert (made.tag, made.branch, made.new) == ("wholebody@v0.0.1", "release/wholebody/v0.0.1", True)
    there = team / "team.git"
    assert git(there, "rev-parse", made.branch) == git(there, "rev-parse", f"{made.tag}^{{}}") == made.commit
    assert f"bundle {made.digest}" in git(there, "cat-file", "tag", made.tag)
    assert yaml.safe_load(git(there, "show", f"{made.tag}:dvc.lock")) == yaml.safe_load(Path("dvc.lock").read_text())
    assert before == (git(Path(), "status", "--porcelain"), git(Path(), "rev-parse", "HEAD"))


def test_the_same_release_is_one_version_and_another_is_the_next(team: Path) -> None:
    first = publish(LINE)
    again = publish(LINE)
    assert (again.tag, again.commit, again.new) == (first.tag, first.commit, False)
    release(Path(), "more")
    assert publish(LINE, "minor").tag == "wholebody@v0.1.0"
    release(Path(), "yet more")
    assert publish(LINE).tag == "wholebody@v0.1.1"
    assert newest(LINE) == "wholebody@v0.1.1"
    assert newest("head") is None


def test_of_two_who_publish_at_once_one_is_told_and_keeps_no_tag(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(line: str, tell: object) -> None:
        monkeypatch.setattr(publishing, "push_data", lambda line, tell: None)
        monkeypatch.chdir(team / "two")
        publish(LINE)
        monkeypatch.chdir(team / "one")

    monkeypatch.setattr(publishing, "push_data", meanwhile)
    with pytest.raises(UserError, match=r"^publish: wholebody@v0\.0\.1 was not taken: "):
        publish(LINE)
    assert git(Path(), "tag", "--list") == ""
    assert (
        git(team / "team.git", "for-each-ref", "--format=%(refname)", "refs/heads/release")
        == "refs/heads/release/wholebody/v0.0.1"
    )
    assert publish(LINE).tag == "wholebody@v0.0.2"


def test_a_publication_that_was_killed_after_its_push_is_finished(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody would read its reports, or be asked to promote it."""
    write_text(Path("reports") / LINE / "index.html", "a page")

    def killed(line: str, version: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_keep_reports", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(LINE)
    again = publish(LINE)
    assert (again.tag, again.new) == ("wholebody@v0.0.1", True)
    kept = publishing.KEPT / LINE / "v0.0.1" / LINE / "index.html"
    assert kept.read_text() == "a page"
    assert not publish(LINE).new
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.parent.rmdir()
    git(Path(), "commit", "-q", "--allow-empty", "-m", "later")
    assert not publish(LINE).new, "a run of another commit has not begun it"


def test_code_that_is_in_no_commit_is_not_published(team: Path) -> None:
    write_text(Path("code.py"), "changed")
    with pytest.raises(UserError, match=r"^publish: code\.py differs from the commit"):
        publish(LINE)
    assert git(team / "team.git", "tag", "--list") == ""


def test_data_that_cannot_be_pushed_leave_no_version(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(line: str, tell: object) -> None:
        raise UserError("dvc push failed: no such bucket")

    monkeypatch.setattr(publishing, "push_data", fails)
    with pytest.raises(UserError, match="no such bucket"):
        publish(LINE)
    assert git(team / "team.git", "for-each-ref", "--format=%(refname)") == "refs/heads/main"
