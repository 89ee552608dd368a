"""How much of a tree could not be read: a few odd files cost themselves, many are a fault of the tree or of its mount.

A file costs its own series at most, so that an archive of which hardly anything can be read (no permission, a copy that
broke off, a rotten disk) would otherwise be a cohort like any other, only smaller.
"""

from __future__ import annotations

from components.errors import UserError
from components.sources.interface import Files

FEW = 10  # cost themselves, however small the tree is
NAMED = 3  # files that an error names; ``files.parquet`` would hold the rest
# Statuses of what claims to hold images, or may, and cannot be read. One of a folder or a zip stands for all its files.
UNREADABLE = frozenset({
    "unreadable", "unreadable_folder", "vanished", "damaged_archive", "archive_over_limit", "encrypted",
    "unsupported_packing", "over_limit",
})  # fmt: skip
WHOLE = frozenset({"unreadable_folder", "damaged_archive", "archive_over_limit"})
# Of what is plainly something else (reports, pictures, links), a tree may hold any number.
NO_DATA = frozenset({
    "not_dicom", "not_nifti", "dicomdir", "archive", "nested_archive", "empty", "link", "broken_link", "special",
})  # fmt: skip


def check_readable(name: str, files: Files, series: int, max_share: float) -> None:
    """Raise UserError where more than ``max_share`` of a source's data cannot be read.

    Args:
        name: of the source.
        files: every file that it lists.
        series: that it lists; a folder or a zip that cannot be read counts as many files as a series has.
        max_share: of files that cannot be read, among these and those that can.
    """
    counts: dict[str, int] = {}
    for status in files.status:
        counts[status] = counts.get(status, 0) + 1
    lost = {status: counts[status] for status in sorted(UNREADABLE & counts.keys())}
    if sum(lost.values()) <= FEW:
        return
    of_series = max(1, round(sum(map(bool, files.series)) / max(1, series)))
    unreadable = sum(count * (of_series if status in WHOLE else 1) for status, count in lost.items())
    readable = sum(count for status, count in counts.items() if status not in UNREADABLE | NO_DATA)
    share = unreadable / (unreadable + readable)
    if share > max_share:
        first = [files.location[n] for n, status in enumerate(files.status) if status in UNREADABLE][:NAMED]
        raise UserError(
            f"root {name!r}: {share:.0%} of its data cannot be read "
            f"({', '.join(f'{status} {count}' for status, count in lost.items())}; such as {', '.join(first)}); "
            f"cohort.quality.max_unreadable_share allows {max_share:.0%}: is the tree whole, and may this user read it?"
        )
