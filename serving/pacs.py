"""Scans that a request names by their UIDs, fetched from this machine's PACS, and results stored there: DICOMweb.

Both doors are shut unless the environment opens them. Where the PACS is, and how it is entered, stands in
``CTFOUNDRY_DICOMWEB_*`` (``components/sources/pacs.py``): a request names no address, ever.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from serving.asking import FORM, IN_A_PACS, SCAN, one_of
from serving.limits import Limits
from serving.sniff import InputError

READS, STORES = "CTFOUNDRY_FROM_PACS", "CTFOUNDRY_TO_PACS"
SWITCH = {"": False, "0": False, "1": True}
STUDY, SERIES, STORE = "study", "series", "store"
FETCH = "fetch"  # asked of a child, as a result's storing is
YES, NO = "true", "false"
UID = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)  # PS3.5, 9.1
UID_CHARACTERS = 64
STALL_SECONDS = 20.0
SLOWEST_MB_S = 0.5
ATTEMPTS = 3  # of one request to the PACS, where it cannot be reached or is too busy
PAGE = 1000


@dataclass(frozen=True)
class Doors:
    """What a service does with the PACS.

    Attributes:
        reads: scans may be named by their UIDs.
        stores: results may be stored.
    """

    reads: bool = False
    stores: bool = False

    @classmethod
    def from_environment(cls) -> Doors:
        """As ``CTFOUNDRY_FROM_PACS`` and ``CTFOUNDRY_TO_PACS`` say. Raises UserError where one of them says neither 0
        nor 1, or is 1 and the PACS is not configured."""
        found = {}
        for name in (READS, STORES):
            text = os.environ.get(name, "").strip()
            if text not in SWITCH:
                raise UserError(f"{name}: {text[:20]!r} is not allowed: 0 or 1")
            found[name] = SWITCH[text]
        if any(found.values()):
            from components.sources.pacs import asking

            with asking(STALL_SECONDS):  # looks at what is configured, and asks nothing yet
                pass
        return cls(found[READS], found[STORES])


def referred(query: Mapping[str, str], model: Mapping[str, Any], fields: Sequence[str]) -> dict[str, list[str]]:
    """Field to study and series UID, of the scans that a request names.

    Args:
        query: of the request: ``study`` and ``series``, for another field than the first ``other_study`` and so on.
        model: as ``GET /model`` tells of it.
        fields: of the route.

    Raises:
        InputError: 400 for half a name or what is no UID; 404 where scans may not be named.
    """
    found = {}
    for field in fields:
        names = [name if field in (SCAN, fields[0]) else f"{field}_{name}" for name in (STUDY, SERIES)]
        given = [query.get(name) for name in names]
        if given == [None, None]:
            continue
        for name, text in zip(names, given, strict=True):
            if text is None:
                raise InputError(f"{name} is missing: a scan in the PACS is named by {' and '.join(names)}", 400)
            if len(text) > UID_CHARACTERS or not UID.fullmatch(text):
                raise InputError(f"{name} {text[:70]!r} is not allowed: a DICOM UID, digits and single dots", 400)
        found[field] = [str(text) for text in given]
    if found and not model["pacs"]["reads"]:
        raise InputError(f"this service reads no PACS: send the scan itself, or serve with {READS}=1", 404)
    return found


def to_store(query: Mapping[str, str], model: Mapping[str, Any], form: str) -> bool:
    """Whether the result is to be stored in the PACS.

    Raises:
        InputError: 400 where it is no DICOM, 404 where nothing may be stored.
    """
    wanted = one_of(STORE, query.get(STORE), [NO, YES]) == YES
    if wanted and form not in IN_A_PACS:
        raise InputError(f"{STORE}={YES} is not allowed with {FORM}={form}: a PACS takes {FORM}=dicom", 400)
    if wanted and not model["pacs"]["stores"]:
        raise InputError(f"this service stores nothing in a PACS: serve with {STORES}=1", 404)
    return wanted


def fetch_series(study: str, series: str, folder: Path, limits: Limits) -> dict[str, Any]:
    """Bring a series into a new folder.

    Returns:
        JSON-like: ``instances``, how many.

    Raises:
        InputError: 404 where the PACS has none of it, 413 where it is beyond ``limits``, 502 for what is wrong with the
            PACS.
    """
    from components.sources.config import TransferConfig
    from components.sources.dicomweb import SeriesTooLargeError, instances_of, receive_instances
    from components.sources.pacs import asking

    slowest = TransferConfig(
        attempts=1, backoff_s=0, stall_s=STALL_SECONDS, slowest_mb_s=SLOWEST_MB_S, connections=1
    )  # fmt: skip
    folder.mkdir()
    try:
        with asking(STALL_SECONDS, slowest, ATTEMPTS) as client:
            listed = instances_of(client, study, series, PAGE)
            if not listed:
                raise InputError("PACS: it has no such series in this study", 404)
            if len(listed) > limits.files:
                raise InputError(f"PACS: a series of {len(listed)} files is too large: at most {limits.files}", 413)
            receive_instances(client, study, series, listed, folder, limits.body_bytes)
    except InputError:
        raise
    except UserError as error:
        raise InputError(str(error), 413 if isinstance(error, SeriesTooLargeError) else 502) from None
    return {"instances": len(listed)}


def store_object(path: Path) -> dict[str, Any]:
    """Store a DICOM file in the PACS (STOW-RS), in the study that it names.

    Returns:
        JSON-like: its ``study``, ``series`` and ``instance`` UIDs.

    Raises:
        InputError: 502 where the PACS does not take it.
    """
    import pydicom

    from components.sources.pacs import asking

    made = pydicom.dcmread(path)
    try:
        with asking(STALL_SECONDS, attempts=ATTEMPTS) as client:
            answer = client.store_instances([made], made.StudyInstanceUID)
    except UserError as error:
        raise InputError(str(error), 502) from None
    if failed := answer.get("FailedSOPSequence"):
        reason = failed[0].get("FailureReason", 0)
        raise InputError(f"PACS: it did not take the result (failure reason {int(reason):04X}H)", 502)
    return {
        "study": str(made.StudyInstanceUID),
        "series": str(made.SeriesInstanceUID),
        "instance": str(made.SOPInstanceUID),
    }
