"""The team's keys: what is none is one line, and no secret is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
from team_keys import private_pem, public_pem

from components.bundle.signing import signing_key
from components.bundle.trust import trusted_keys
from components.errors import UserError

KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGNING_KEY", "SIGNING_KEY_FILE", "SIGNING_KEY_PASSWORD", "TRUSTED_KEYS", "REQUIRE_SIGNATURE"):
        monkeypatch.delenv(f"CTFOUNDRY_{name}", raising=False)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"holds no \.pub file; allowed: a PEM public key on the curve P-256"),
        (b"-----BEGIN", r"team\.pub: no public key; allowed: "),
        (private_pem(KEY), r"team\.pub: no public key; allowed: "),
        (public_pem(ec.generate_private_key(ec.SECP384R1())), r"team\.pub: a key of another kind; allowed: "),
        (public_pem(ed25519.Ed25519PrivateKey.generate()), r"team\.pub: a key of another kind; allowed: "),
    ],
)
def test_keys_that_are_none_are_one_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    (tmp_path / "keys").mkdir()
    if content is not None:
        (tmp_path / "keys" / "team.pub").write_bytes(content)
    with pytest.raises(UserError, match=rf"^--keys: {tmp_path}/keys.*{says}"):
        trusted_keys(tmp_path / "keys")
    with pytest.raises(UserError, match=r"^--keys: nowhere: no such file or directory$"):
        trusted_keys(Path("nowhere"))


def test_the_private_key_comes_from_the_environment_and_its_text_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert signing_key() is None
    monkeypatch.setenv("CTFOUNDRY_SIGNING_KEY", private_pem(KEY).decode())
    found = signing_key()
    assert found is not None
    assert found.private_numbers() == KEY.private_numbers()
    monkeypatch.setenv("CTFOUNDRY_SIGNING_KEY_FILE", str(tmp_path / "team.pem"))
    with pytest.raises(UserError, match=r"^CTFOUNDRY_SIGNING_KEY and CTFOUNDRY_SIGNING_KEY_FILE are both set"):
        signing_key()
    monkeypatch.delenv("CTFOUNDRY_SIGNING_KEY")
    with pytest.raises(UserError, match=r"^CTFOUNDRY_SIGNING_KEY_FILE: .*team\.pem: no such file or directory$"):
        signing_key()
    (tmp_path / "team.pem").write_bytes(private_pem(KEY, BestAvailableEncryption(b"open sesame")))
    with pytest.raises(
        UserError, match=r"_FILE: .*team\.pem: has a password; CTFOUNDRY_SIGNING_KEY_PASSWORD must hold it$"
    ):
        signing_key()
    monkeypatch.setenv("CTFOUNDRY_SIGNING_KEY_PASSWORD", "open barley")
    with pytest.raises(UserError, match=r"CTFOUNDRY_SIGNING_KEY_PASSWORD is wrong$") as raised:
        signing_key()
    assert "barley" not in str(raised.value)
    monkeypatch.setenv("CTFOUNDRY_SIGNING_KEY_PASSWORD", "open sesame")
    found = signing_key()
    assert found is not None
    assert found.private_numbers() == KEY.private_numbers()
    (tmp_path / "team.pem").write_bytes(private_pem(ec.generate_private_key(ec.SECP384R1())))
    monkeypatch.delenv("CTFOUNDRY_SIGNING_KEY_PASSWORD")
    with pytest.raises(
        UserError, match=r"_FILE: .*team\.pem: a key of another kind; allowed: a PEM private key on the curve P-256"
    ):
        signing_key()
