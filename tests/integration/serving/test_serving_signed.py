"""Where keys are trusted, the service and the commands begin with a release that one of them signed, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
from client import nifti
from conftest import running, started
from cryptography.hazmat.primitives.asymmetric import ec
from released import free_port
from team_keys import public_pem
from test_embed_command import embed

from components.bundle.manifest import write_manifest
from components.bundle.signing import sign_release
from components.models.embed import WEIGHTS

TEAM = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def signed(bundle: Path, tmp_path: Path) -> Path:
    """A checkout with a signed release in it; the keys beside the checkout."""
    release = shutil.copytree(bundle, tmp_path / "checkout" / "releases" / "wholebody")
    sign_release(release, TEAM)
    (tmp_path / "checkout" / "dvc.yaml").touch()
    (tmp_path / "checkout" / "params.yaml").write_text("lines: [wholebody]\n")
    (tmp_path / "checkout" / "scan.nii.gz").write_bytes(nifti())
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "team.pub").write_bytes(public_pem(TEAM))
    return release


def variables(tmp_path: Path) -> dict[str, str]:
    return {"CTFOUNDRY_TRUSTED_KEYS": str(tmp_path / "keys"), "CTFOUNDRY_REQUIRE_SIGNATURE": "1"}


def refusal_of(release: Path, home: Path, **variables: str) -> str:
    """The one line with which the service ends where it does not begin."""
    server = started(release, home, free_port(), **variables)
    try:
        assert server.wait(timeout=120) == 1
    finally:
        server.kill()
    log = (home / "log").read_text()
    assert "Traceback" not in log
    (line,) = (line for line in log.splitlines() if "not served: " in line)
    return line.partition("not served: ")[2]


def test_a_release_that_was_tampered_with_is_not_served_and_answers_nothing(signed: Path, tmp_path: Path) -> None:
    """Weights of another, whose manifest was made to fit: without keys this is a release like any other."""
    with (signed / WEIGHTS).open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    write_manifest(signed, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    says = f"bundle wholebody: {WEIGHTS}: not as team signed it as 'wholebody' (here "
    assert refusal_of(signed, tmp_path, **variables(tmp_path)).startswith(says)
    done = embed(signed.parents[1], "scan.nii.gz", **variables(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert says in line


def test_an_unsigned_release_is_not_served_where_keys_are_missing_either(signed: Path, tmp_path: Path) -> None:
    signed.with_name("wholebody.sig").unlink()
    assert refusal_of(signed, tmp_path, **variables(tmp_path)).startswith("signature wholebody.sig: missing")
    alone = {"CTFOUNDRY_REQUIRE_SIGNATURE": "1"}
    assert refusal_of(signed, tmp_path, **alone).startswith(
        "CTFOUNDRY_REQUIRE_SIGNATURE: 1, but CTFOUNDRY_TRUSTED_KEYS"
    )


def test_a_release_that_the_team_signed_is_served(signed: Path, tmp_path: Path) -> None:
    with running(signed, tmp_path, **variables(tmp_path)) as (url, _):
        assert httpx.get(f"{url}/model", timeout=5).json()["name"] == "ctfoundry-wholebody"
    done = embed(signed.parents[1], "scan.nii.gz", **variables(tmp_path))
    assert done.returncode == 0, done.stderr
