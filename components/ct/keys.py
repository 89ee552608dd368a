"""Keyed pseudonyms: tables, logs and reports name patients and series by these, never by their identifiers."""

from __future__ import annotations

import hmac
import os

from components.errors import UserError

# A site sets its own secret; the public default keeps open data comparable between teams.
KEY_VARIABLE = "CTFOUNDRY_PSEUDONYM_KEY"
PUBLIC_KEY = "ctfoundry"
SECRET_BYTES = 16


def require_secret(source: str) -> None:
    """Raise UserError where data of a site would be named by a key that others know, or can guess: who has the key
    finds the PatientID of a pseudonym by trying all there are, which takes seconds."""
    found = len(os.environ.get(KEY_VARIABLE, "").strip().encode())
    if found < SECRET_BYTES:
        raise UserError(
            f"{KEY_VARIABLE}: {f'{found} bytes are' if found else 'not set, which is'} not allowed with source "
            f"{source!r}: a secret of at least {SECRET_BYTES} bytes, the same for every run; make one with "
            "`openssl rand -hex 16`"
        )


def _pseudonym(kind: str, text: str) -> str:
    key = (os.environ.get(KEY_VARIABLE) or PUBLIC_KEY).encode()
    message = f"{kind}\0{text}".encode("utf-8", "surrogateescape")  # a file's name may be any bytes
    return kind[0] + hmac.digest(key, message, "sha256").hex()[:16]


def patient_key(patient_id: str) -> str:
    """Pseudonym of a PatientID: ``p`` and 16 hex digits, the same in every source and evaluation set."""
    return _pseudonym("patient", patient_id.strip())


def series_key(identity: str) -> str:
    """Pseudonym of a series: ``s`` and 16 hex digits. ``identity`` is its UID, or what stands in for an empty one."""
    return _pseudonym("series", identity)


def uid_key(series_uid: str) -> str:
    """Pseudonym of a SeriesInstanceUID alone, as tables of labels name series: ``u`` and 16 hex digits; '' where none
    is named. A series' own key may be drawn from more."""
    return _pseudonym("uid", series_uid.strip()) if series_uid.strip() else ""


def accession_key(number: str) -> str:
    """Pseudonym of an AccessionNumber: ``a`` and 16 hex digits; '' where none is named."""
    return _pseudonym("accession", number.strip()) if number.strip() else ""


def study_key(study_uid: str) -> str:
    """Pseudonym of a study: ``e`` (examination) and 16 hex digits; '' where none is named."""
    return _pseudonym("examination", study_uid) if study_uid else ""


def file_key(location: str) -> str:
    """Pseudonym of a file's location below its source's root: ``f`` and 16 hex digits."""
    return _pseudonym("file", location)


def frame_key(uid: str) -> str:
    """Pseudonym of a frame of reference: ``r`` and 16 hex digits; '' where none is named."""
    return _pseudonym("reference", uid) if uid else ""
