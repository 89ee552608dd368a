"""Keys with which the tests sign releases, as PEM."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def public_pem(key: Any) -> bytes:
    """The public half of a private key."""
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def private_pem(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    """A private key, open unless it is encrypted."""
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
