"""``ctfoundry sign`` and ``verify-bundle``, as they are typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from team_keys import private_pem, public_pem

from components.bundle.manifest import write_manifest
from components.errors import UserError
from flows import cli
from flows.run import Run

TEAM = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the release of a line, its Bento without a signature, and the team's keys."""
    for name in ("SIGNING_KEY", "SIGNING_KEY_FILE", "SIGNING_KEY_PASSWORD", "TRUSTED_KEYS", "REQUIRE_SIGNATURE"):
        monkeypatch.delenv(f"CTFOUNDRY_{name}", raising=False)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentos-of-this-test"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("lines: [head]\n")
    (tmp_path / "team.pem").write_bytes(private_pem(TEAM))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "team.pub").write_bytes(public_pem(TEAM))
    release = tmp_path / "releases" / "head"
    release.mkdir(parents=True)
    (release / "MODEL_CARD.md").write_text("# A card\n")
    digest = write_manifest(release, "head", "ctfoundry-head", {}).digest
    bento = tmp_path / "bentos-of-this-test" / "bentos" / "ctfoundry-head" / digest[:16]
    (bento / "src").mkdir(parents=True)
    (bento / "bento.yaml").touch()
    (bento / "src" / "bundle").symlink_to(release)
    return tmp_path


def ctfoundry(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ctfoundry", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_release_and_its_bento_are_signed_and_verified(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctfoundry(monkeypatch, "sign") == 1
    assert capsys.readouterr().err == (
        "ctfoundry: no key: set CTFOUNDRY_SIGNING_KEY_FILE to a PEM file, or CTFOUNDRY_SIGNING_KEY to its text\n"
    )
    assert ctfoundry(monkeypatch, "verify-bundle", "--keys", "keys") == 1
    assert capsys.readouterr().err.startswith("ctfoundry: signature head.sig: missing beside the bundle")
    monkeypatch.setenv("CTFOUNDRY_SIGNING_KEY_FILE", "team.pem")
    assert ctfoundry(monkeypatch, "sign", "--line", "head") == 0
    assert "releases/head.sig: signed by the key" in capsys.readouterr().out
    (src,) = (checkout / "bentos-of-this-test").glob("bentos/ctfoundry-head/*/src")
    for folder in ([], ["releases/head"], [str(src / "bundle")]):
        assert ctfoundry(monkeypatch, "verify-bundle", *folder, "--keys", "keys") == 0
        assert "signature: by team, the key" in capsys.readouterr().out
    assert [path.name for path in (src / "signature").iterdir()] == ["bundle.sig"]
    (src / "signature" / "bundle.sig").unlink()
    assert ctfoundry(monkeypatch, "verify-bundle", str(src / "bundle"), "--keys", "keys/team.pub") == 1
    assert capsys.readouterr().err.startswith("ctfoundry: signature bundle.sig: missing")


def test_without_keys_the_manifest_alone_is_verified_and_said_so(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctfoundry(monkeypatch, "verify-bundle") == 0
    assert capsys.readouterr().out.splitlines()[1] == "signature: not asked for: no keys are trusted here"
    (checkout / "releases" / "head" / "MODEL_CARD.md").write_text("# Another\n")
    assert ctfoundry(monkeypatch, "verify-bundle") == 1
    assert capsys.readouterr().err.startswith("ctfoundry: bundle head: MODEL_CARD.md: differs from the manifest")


def test_a_key_that_cannot_sign_ends_a_release_before_it_begins(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CTFOUNDRY_SIGNING_KEY", "no key")
    monkeypatch.setattr("flows.run.require_free", lambda: None)
    run = Run("head")
    with pytest.raises(UserError, match=r"^CTFOUNDRY_SIGNING_KEY: no private key; allowed: a PEM private key"):
        run.begin(lambda line: None)
    assert run.steps == []
