"""Certificates of the service, looked at before it starts: what the server says of a wrong one is long, and late."""

from __future__ import annotations

import argparse
import ssl
from dataclasses import dataclass
from pathlib import Path

from components.errors import UserError

CERTIFICATE, KEY = "-----BEGIN CERTIFICATE-----", "PRIVATE KEY-----"


@dataclass(frozen=True)
class Tls:
    """Files in PEM; all None for plain HTTP.

    Attributes:
        certfile: the service's certificate, its chain behind it.
        keyfile: its key; None where that is in the file of the certificate.
        ca_certs: those whose clients are let in; None lets in clients without a certificate.
    """

    certfile: Path | None = None
    keyfile: Path | None = None
    ca_certs: Path | None = None

    def arguments(self) -> list[str]:
        """Of ``bentoml serve``, with absolute paths; none for plain HTTP.

        Raises:
            UserError: a file is missing, holds something else, or does not belong to the others.
        """
        if self.certfile is None:
            for option, path in (("--ssl-keyfile", self.keyfile), ("--ssl-ca-certs", self.ca_certs)):
                if path is not None:
                    raise UserError(f"{option} {path} is not allowed without --ssl-certfile")
            return []
        found = ["--ssl-certfile", str(self._certified(self.certfile).absolute())]
        if self.keyfile is not None:
            found += ["--ssl-keyfile", str(self.keyfile.absolute())]
        if self.ca_certs is not None:
            _require("--ssl-ca-certs", self.ca_certs, CERTIFICATE, "CA certificate")
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self.ca_certs)
            except ssl.SSLError as error:
                raise UserError(f"--ssl-ca-certs {self.ca_certs}: {_reason(error)}") from None
            # Without it the server would not even ask a client for its certificate.
            required = str(int(ssl.CERT_REQUIRED))
            found += ["--ssl-ca-certs", str(self.ca_certs.absolute()), "--ssl-cert-reqs", required]
        return found

    def _certified(self, certfile: Path) -> Path:
        """The certificate, which its key belongs to."""
        _require("--ssl-certfile", certfile, CERTIFICATE, "certificate")
        option, keys = ("--ssl-certfile", certfile) if self.keyfile is None else ("--ssl-keyfile", self.keyfile)
        _require(option, keys, KEY, "private key")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keys, password=_no_password)
        except _PasswordWanted:
            what = "a key with a password is not allowed: nobody is there to type it"
            raise UserError(f"{option} {keys}: {what}") from None
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise UserError(f"{option} {keys}: not the key of --ssl-certfile {certfile}") from None
            raise UserError(f"--ssl-certfile {certfile}, {option} {keys}: {_reason(error)}") from None
        return certfile


PLAIN = Tls()


class _PasswordWanted(Exception):
    pass


def _no_password() -> str:
    raise _PasswordWanted


def _reason(error: ssl.SSLError) -> str:
    return f"not readable as PEM ({(error.reason or 'damaged').replace('_', ' ').lower()})"


def _require(option: str, path: Path, mark: str, what: str) -> None:
    """Raise UserError where a file is missing or has no such block of PEM."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UserError(f"{option} {path}: {(error.strerror or str(error)).lower()}") from None
    if mark not in text:
        raise UserError(f"{option} {path}: no {what} in it (PEM)")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`tls_of` reads."""
    parser.add_argument(
        "--ssl-certfile", type=Path, help="serve over TLS with this certificate (PEM, its chain behind it)"
    )
    parser.add_argument("--ssl-keyfile", type=Path, help="its key (PEM; default: in the file of the certificate)")
    parser.add_argument("--ssl-ca-certs", type=Path, help="let in only clients with a certificate of these CAs (PEM)")


def tls_of(arguments: argparse.Namespace) -> Tls:
    """The certificates that the options name."""
    return Tls(arguments.ssl_certfile, arguments.ssl_keyfile, arguments.ssl_ca_certs)
