"""Keyed pseudonyms: tables, logs and reports name patients and series by these, never by their identifiers."""

from __future__ import annotations

import hashlib
import hmac
import os

# A site sets its own secret; the public default keeps open data comparable between teams.
KEY_VARIABLE = "CTFOUNDRY_PSEUDONYM_KEY"
PUBLIC_KEY = "ctfoundry"


def _pseudonym(kind: str, text: str) -> str:
    key = os.environ.get(KEY_VARIABLE, PUBLIC_KEY).encode()
    message = f"{kind}\0{text}".encode("utf-8", "surrogateescape")  # a file's name may be any bytes
    return kind[0] + hmac.new(key, message, hashlib.sha256).hexdigest()[:16]


def patient_key(patient_id: str) -> str:
    """Pseudonym of a PatientID: ``p`` and 16 hex digits, the same in every source and evaluation set."""
    return _pseudonym("patient", patient_id.strip())


def series_key(identity: str) -> str:
    """Pseudonym of a series: ``s`` and 16 hex digits. ``identity`` is its UID, or what stands in for an empty one."""
    return _pseudonym("series", identity)


def study_key(study_uid: str) -> str:
    """Pseudonym of a study: ``e`` (examination) and 16 hex digits; '' where none is named."""
    return _pseudonym("examination", study_uid) if study_uid else ""


def file_key(location: str) -> str:
    """Pseudonym of a file's location below its source's root: ``f`` and 16 hex digits."""
    return _pseudonym("file", location)


def frame_key(uid: str) -> str:
    """Pseudonym of a frame of reference: ``r`` and 16 hex digits; '' where none is named."""
    return _pseudonym("reference", uid) if uid else ""
