"""Certificates are looked at before the service starts: a wrong file is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from components.errors import UserError
from serving.tls import PLAIN, Tls
from tests.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_the_servers_arguments_have_absolute_paths_and_ask_clients_for_certificates(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.pair("server")
    monkeypatch.chdir(tmp_path)
    assert PLAIN.arguments() == []
    certificate, key = (str(tmp_path / f"server.{suffix}") for suffix in ("pem", "key"))
    plain = ["--ssl-certfile", certificate, "--ssl-keyfile", key]
    assert Tls(Path("server.pem"), Path("server.key")).arguments() == plain
    mutual = Tls(Path("server.pem"), Path("server.key"), Path("ca.pem")).arguments()
    assert mutual == [*plain, "--ssl-ca-certs", str(tmp_path / "ca.pem"), "--ssl-cert-reqs", "2"]


def test_certificate_and_key_may_lie_in_one_file(authority: Authority, tmp_path: Path) -> None:
    pair = authority.pair("server")
    both = tmp_path / "both.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    assert Tls(both).arguments() == ["--ssl-certfile", str(both)]


def test_files_that_do_not_fit_are_one_line(authority: Authority, tmp_path: Path) -> None:
    server, other = authority.pair("server"), authority.pair("other")
    locked = authority.pair("locked", password=b"secret")
    text, torn, nowhere = tmp_path / "text", tmp_path / "torn.pem", tmp_path / "nowhere"
    text.write_text("no certificate\n")
    torn.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    missing = "no such file or directory"
    cases = [
        (Tls(None, server.key), f"--ssl-keyfile {server.key} is not allowed without --ssl-certfile"),
        (Tls(None, None, authority.certificate), f"--ssl-ca-certs {authority.certificate} is not allowed without"),
        (Tls(nowhere, server.key), f"--ssl-certfile {nowhere}: {missing}"),
        (Tls(server.certificate, nowhere), f"--ssl-keyfile {nowhere}: {missing}"),
        (Tls(server.certificate, server.key, nowhere), f"--ssl-ca-certs {nowhere}: {missing}"),
        (Tls(tmp_path, server.key), f"--ssl-certfile {tmp_path}: is a directory"),
        (Tls(text, server.key), f"--ssl-certfile {text}: no certificate in it (PEM)"),
        (Tls(server.certificate), f"--ssl-certfile {server.certificate}: no private key in it (PEM)"),
        (Tls(server.certificate, other.key), f"{other.key}: not the key of --ssl-certfile {server.certificate}"),
        (Tls(locked.certificate, locked.key), f"--ssl-keyfile {locked.key}: a key with a password is not allowed"),
        (Tls(torn, server.key), f"--ssl-certfile {torn}, --ssl-keyfile {server.key}: not readable as PEM"),
        (Tls(server.certificate, server.key, text), f"--ssl-ca-certs {text}: no CA certificate in it (PEM)"),
        (Tls(server.certificate, server.key, torn), f"--ssl-ca-certs {torn}: not readable as PEM"),
    ]
    for tls, says in cases:
        with pytest.raises(UserError, match=re.escape(says)) as caught:
            tls.arguments()
        assert "\n" not in str(caught.value)
