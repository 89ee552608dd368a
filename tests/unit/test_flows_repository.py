"""What git says of a checkout of ours, of another owner's and of none."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from components.errors import UserError
from flows import repository
from flows.places import require_pins, require_repository
from flows.verify import MADE_ON, verify


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, below a name with a space and a quote."""
    folder = tmp_path / "my doctor's scans"
    folder.mkdir()
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder


def test_a_bento_names_its_commit_also_in_a_checkout_of_another_owner(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    plain = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert "dubious ownership" in plain.stderr  # as in a bind mount
    assert repository.commit_labels() == {"git_commit": commit, "git_changed": "no"}
    repository.clone(tmp_path / "clone")
    assert (tmp_path / "clone" / ".git").is_dir()


def test_what_git_refuses_is_one_line(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^git rev-parse: .*nothing-here") as raised:
        repository.git("rev-parse", "nothing-here")
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^git: not found"):
        repository.commit_labels()


def test_without_a_repository_both_commands_say_so_before_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("")
    with pytest.raises(UserError, match=r"no git repository: clone it, .*core.no_scm true"):
        require_repository()
    with pytest.raises(UserError, match=r"verify: this folder is no git repository"):
        verify("head")
    (tmp_path / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    require_repository()
    assert repository.commit_labels() == {}


def test_verify_takes_along_what_a_release_wrote_and_misses_nothing_that_it_did_not(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first release writes made_on.json only where pretraining ran; one from an older commit has none."""
    Path("params.yaml").write_text("head: {}\n")
    Path("dvc.lock").write_text("stages: {}\n")
    Path("infra").mkdir()
    Path("infra/other.json").write_text("{}\n")
    for command in (["add", "."], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "second"]):
        subprocess.run(["git", *command], check=True)
    monkeypatch.setattr("flows.verify.stages_for", lambda target: [])  # the graph is no part of this
    Path("params.yaml").write_text("head: {reproducible: machine}\n")
    assert verify("head", tmp_path / "without") == []
    assert (tmp_path / "without/params.yaml").read_bytes() == Path("params.yaml").read_bytes()
    assert not (tmp_path / "without" / MADE_ON).exists()
    assert capsys.readouterr().err.splitlines()[1:] == ["verify: params.yaml as in this checkout, not as committed"]
    MADE_ON.write_text("{}\n")
    verify("head", tmp_path / "with")
    assert (tmp_path / "with" / MADE_ON).read_bytes() == MADE_ON.read_bytes()
    with pytest.raises(UserError, match=r"^git clone: destination path '.*/with' already exists and is not an empty"):
        verify("head", tmp_path / "with")


def test_what_is_not_installed_as_pinned_is_named_before_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_pins()  # this environment is the lock file's
    monkeypatch.chdir(tmp_path)
    pins = tmp_path / "infra" / "pins"
    pins.mkdir(parents=True)
    (pins / "evaluate.txt").write_text(f"numpy=={metadata.version('numpy')}\nscipy==1.0.1\n")
    (pins / "serving.txt").write_text("bentoml==0.0.1\n")  # of the Bento, which brings its own
    scipy = re.escape(metadata.version("scipy"))
    with pytest.raises(UserError, match=rf"^installed is scipy {scipy} \(pinned: 1\.0\.1\): a release is made with"):
        require_pins()
    (pins / "pretrain.txt").write_text("no-such-package==2\nmonai==0.1\nnumpy==0.1\n")
    with pytest.raises(UserError, match=r"no-such-package missing \(pinned: 2\).* and 1 more: "):
        require_pins()
