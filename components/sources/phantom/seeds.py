"""Randomness without state: every draw has a name, so adding one draw changes no other."""

from __future__ import annotations

import hashlib

import numpy as np


def hash_int(*parts: object, bits: int = 63) -> int:
    """A non-negative integer of at most ``bits`` bits that depends on nothing but ``parts``."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest, "big") >> (256 - bits)


def generator(*parts: object) -> np.random.Generator:
    """A fresh generator seeded by the names and numbers given."""
    return np.random.Generator(np.random.PCG64(hash_int(*parts)))


def uid(*parts: object) -> str:
    """A DICOM UID below 2.25 (PS3.5 B.2), derived from ``parts`` instead of a random UUID."""
    return f"2.25.{hash_int('uid', *parts, bits=120)}"
