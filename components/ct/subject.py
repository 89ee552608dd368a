"""Whom a scan is of, as far as groups of patients are told apart: sex, age in decades, contrast.

Nothing finer leaves this module: an exact age, with a sex and a scanner, may be one person's. '' is what is not known,
as of de-identified data, whose identifiers PS3.15 table E.1-1 removes or empties.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from components.ct.privacy import is_dummy

TAGS = ("PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "ContrastBolusAgent")
OLDEST = 90  # and older, together: so few that an age could name them
IMPLAUSIBLE = 120  # years; of dates that were shifted or made up
DAYS = {"Y": 365.25, "M": 30.4375, "W": 7.0, "D": 1.0}
WITHOUT = frozenset({"0", "N", "NA", "NIL", "NO", "NOCONTRAST", "NONCONTRAST", "NONE", "WITHOUT", "WITHOUTCONTRAST"})
_AGE, _DATE = re.compile(r"(\d{3})([DWMY])"), re.compile(r"(\d{4})(\d{2})(\d{2})")


def subject_of(images: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """``sex``, ``age`` and ``contrast`` of a series, by the tags of its images; all '' where it has none."""
    if not images:
        return {"sex": "", "age": "", "contrast": ""}
    agents = {contrast_of(tags) for tags in images}
    contrast = next((told for told in ("yes", "", "no") if told in agents), "")
    return {"sex": sex_of(images[0]), "age": age_of(images[0]), "contrast": contrast}


def sex_of(tags: Mapping[str, Any]) -> str:
    """``M``, ``F``, ``O``, or ''."""
    told = str(tags.get("PatientSex", "")).strip().upper()
    return told if told in ("M", "F", "O") else ""


def age_of(tags: Mapping[str, Any]) -> str:
    """``0-9``, ``10-19``, ... ``90+``, or '': by PatientAge, else from the date of birth to that of the study.

    An age of ``000Y`` stands for none: it is what is written where one was, and infants have theirs in months.
    """
    told = _AGE.fullmatch(str(tags.get("PatientAge", "")).strip().upper())
    if told is not None:
        number, unit = int(told[1]), told[2]
        return "" if (number, unit) == (0, "Y") else _decade(number if unit == "Y" else number * DAYS[unit] / DAYS["Y"])
    birth, then = (_day(str(tags.get(name, ""))) for name in ("PatientBirthDate", "StudyDate"))
    if birth is None or then is None or is_dummy("PatientBirthDate", f"{birth:%Y%m%d}".encode(), "", False):
        return ""
    return _decade(then.year - birth.year - ((then.month, then.day) < (birth.month, birth.day)))


def _day(text: str) -> date | None:
    parts = _DATE.fullmatch(text.strip())
    try:
        return date(*map(int, parts.groups())) if parts else None
    except ValueError:
        return None


def _decade(years: float) -> str:
    if not 0 <= years <= IMPLAUSIBLE:
        return ""
    start = int(years) // 10 * 10
    return f"{OLDEST}+" if start >= OLDEST else f"{start}-{start + 9}"


def contrast_of(tags: Mapping[str, Any]) -> str:
    """``yes``, ``no``, or '', by ContrastBolusAgent: an agent, a word for none, or nothing.

    By the standard an image without the contrast module is one without contrast (PS3.3 A.3.3). In archives it is as
    often one of a scanner that was not told of the injection; and de-identification empties the agent (PS3.15 table
    E.1-1), which tells as little. So ``no`` is what says so. Enhanced CT has a sequence instead, which is not read.
    """
    agent = str(tags.get("ContrastBolusAgent", ""))
    if re.sub(r"[\W_]+", "", agent).upper() in WITHOUT:
        return "no"
    return "" if is_dummy("ContrastBolusAgent", agent.encode("utf-8"), "", False) else "yes"
