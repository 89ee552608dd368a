"""Files of a series that are copies of each other: exports are merged, folders are copied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from components.ct.headers import series_identity
from components.ct.instance import Instance
from components.files import sha256_file


def copies(instances: Sequence[Instance], files: Mapping[str, Path]) -> set[str]:
    """Locations of instances that hold the very bytes of an earlier one of their series, in the order of locations. The
    source ``dicom`` leaves the same files out. Others that share a SOPInstanceUID stay: they contradict each other.

    Args:
        instances: of any series.
        files: location to file.
    """
    alike: dict[tuple[str, str, int], list[Instance]] = defaultdict(list)
    for instance in instances:
        if instance.status in ("image", "object"):
            uid = instance.tags.get("SOPInstanceUID", "")
            alike[series_identity(instance), uid, instance.bytes].append(instance)
    found: set[str] = set()
    for group in alike.values():
        seen: set[str] = set()
        for instance in sorted(group, key=lambda i: i.location) if len(group) > 1 else ():
            digest = sha256_file(files[instance.location])
            if digest in seen:
                found.add(instance.location)
            seen.add(digest)
    return found
