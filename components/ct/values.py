"""Header values as the dictionary has them: one value, or several (PS3.5 6.4, PS3.6 6).

Writers put several where one belongs, and values of another representation than the attribute's. Every reader of
headers hands its values through here, so that nothing behind it meets a kind that it does not know.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from pydicom import Dataset, Sequence
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.multival import MultiValue

WHOLE = frozenset(("IS", "US", "SS", "UL", "SL", "US or SS"))
LARGEST = 2**32  # no representation of whole numbers goes beyond, and no column would hold it
_DIGITS = re.compile(r"[+-]?[0-9]{1,10}")


@cache
def is_several(keyword: str) -> bool:
    """Whether the dictionary allows the attribute more than one value."""
    tag = tag_for_keyword(keyword)
    return tag is not None and dictionary_VM(tag) != "1"


@cache
def _is_whole(keyword: str) -> bool:
    tag = tag_for_keyword(keyword)
    return tag is not None and dictionary_VR(tag) in WHOLE


def normalised(keyword: str, value: Any) -> Any:
    """A value that pydicom read, as the dictionary has the attribute.

    Returns:
        A tuple of str for an attribute of several values; else an int, where the attribute is a whole number and the
        value is one; else a str, in which backslashes part what a writer gave as several values. None for what is empty
        or no value at all (a sequence).
    """
    if value is None or isinstance(value, Sequence):
        return None
    if isinstance(value, bytes) and len(value) == 2 and _is_whole(keyword):  # US or SS, and nothing says which
        return int.from_bytes(value, "little")
    parts = [_text(part) for part in value] if isinstance(value, MultiValue | list | tuple) else [_text(value)]
    if not any(parts):
        return None
    if is_several(keyword):
        return tuple(parts)
    text = "\\".join(parts)
    if not _is_whole(keyword):
        return text
    number = int(value) if isinstance(value, int) else int(text) if _DIGITS.fullmatch(text.strip()) else LARGEST
    return number if abs(number) < LARGEST else text


def values_of(dataset: Dataset, keywords: tuple[str, ...]) -> dict[str, Any]:
    """Keyword to :func:`normalised` value, of what a data set states at its top level."""
    found = {keyword: normalised(keyword, dataset.get(keyword)) for keyword in keywords}
    return {keyword: value for keyword, value in found.items() if value is not None}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("latin-1").strip("\0 ") if isinstance(value, bytes) else str(value)
