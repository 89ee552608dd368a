"""Whose signatures are believed: public keys that lie outside of what they vouch for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from components.errors import UserError

KEYS_VARIABLE, REQUIRED_VARIABLE = "CTFOUNDRY_TRUSTED_KEYS", "CTFOUNDRY_REQUIRE_SIGNATURE"
SUFFIX = ".pub"
ALLOWED = "a PEM public key on the curve P-256, as `openssl ec -pubout` writes it"


@dataclass(frozen=True)
class TrustedKey:
    """A public key whose signatures are believed.

    Attributes:
        name: its file's, without the suffix.
        fingerprint: hex SHA-256 of its PEM, by which a signature names it.
        key: on P-256.
    """

    name: str
    fingerprint: str
    key: ec.EllipticCurvePublicKey


def trusted_keys(chosen: Path | None = None) -> tuple[TrustedKey, ...]:
    """The keys that are trusted here: empty where none are named and no signature is required.

    Args:
        chosen: a folder of ``*.pub`` files, or one file of any name; what ``CTFOUNDRY_TRUSTED_KEYS`` says where None.

    Raises:
        UserError: a file is no public key on P-256, a folder holds none, or ``CTFOUNDRY_REQUIRE_SIGNATURE`` is set and
            no keys are named.
    """
    required = os.environ.get(REQUIRED_VARIABLE, "").strip()
    if required not in ("", "0", "1"):
        raise UserError(f"{REQUIRED_VARIABLE}: {required!r} is not allowed: 0 or 1")
    named = os.environ.get(KEYS_VARIABLE, "").strip()
    if chosen is None and not named:
        if required == "1":
            raise UserError(
                f"{REQUIRED_VARIABLE}: 1, but {KEYS_VARIABLE} names no keys; allowed: a folder of "
                f"{SUFFIX} files, or one file"
            )
        return ()
    return _read(chosen or Path(named), "--keys" if chosen else KEYS_VARIABLE)


def _read(path: Path, says: str) -> tuple[TrustedKey, ...]:
    if not path.exists():
        raise UserError(f"{says}: {path}: no such file or directory")
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{says}: {path}: holds no {SUFFIX} file; allowed: {ALLOWED}")
    return tuple(_read_key(file, says) for file in files)


def _read_key(path: Path, says: str) -> TrustedKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise UserError(f"{says}: {path}: {str(error.strerror).lower()}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{says}: {path}: no public key; allowed: {ALLOWED}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise UserError(f"{says}: {path}: a key of another kind; allowed: {ALLOWED}")
    return TrustedKey(path.stem, fingerprint(key), key)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Hex SHA-256 of the key's PEM: what model-signing calls its hint."""
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
