"""The one CT series in a folder as people have them: an RTSTRUCT beside the slices, a DICOMDIR, a text file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.ct.apart import volume_of
from components.ct.copies import copies
from components.ct.dicom import read_series
from components.ct.headers import group_series, measure_series, read_instance, series_identity
from components.ct.instance import Instance
from components.ct.keys import series_key
from components.ct.origin import Origin, shared_origin
from components.ct.store import Volume
from components.errors import UserError

DIRECTORY = "DICOMDIR"  # the name that the standard gives it (PS3.10 8.6)


@dataclass(frozen=True)
class Series:
    """A CT series.

    Attributes:
        volume: on the scanner's grid.
        origin: of which scan it is.
        measured: of its headers, as acquisition takes them.
        left_out: reason to number of files that are not of it.
    """

    volume: Volume
    origin: Origin
    measured: dict[str, Any]
    left_out: dict[str, int] = field(default_factory=dict)


def read_folder(folder: Path, only_largest_stack: bool) -> Series:
    """Read the CT series whose files lie in ``folder``; what is no CT image is left out, as by the source ``dicom`` and
    the service.

    Raises:
        UserError: none, or more than one; a file of it is damaged; it forms no volume.
    """
    left_out: Counter[str] = Counter()
    instances: list[Instance] = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            with path.open("rb") as stream:
                instance = read_instance(stream, path.name, path.stat().st_size)
        except OSError as error:
            raise UserError(f"{path.name}: not readable ({error.strerror})") from None
        if path.name.upper() == DIRECTORY or instance.status in ("dicomdir", "not_dicom"):
            left_out["dicomdir" if path.name.upper() == DIRECTORY else instance.status] += 1
        elif instance.status == "unreadable" or instance.truncated:
            raise UserError(f"{path.name}: damaged or cut-short DICOM file; `ctfoundry volume` needs the whole series")
        else:
            instances.append(instance)
    images = _only_ct(folder, instances, left_out, only_largest_stack)
    twice = copies(images, {image.location: folder / image.location for image in images})
    if twice:
        left_out["copies"] += len(twice)
    images = [image for image in images if image.location not in twice]
    measured = measure_series(images, only_largest_stack)
    if measured["left_out"]:
        left_out["outside_the_largest_stack"] += measured["left_out"]
    paths = [folder / image.location for image in images]
    volume = volume_of(lambda: read_series(paths, only_largest_stack), folder.name)
    key = series_key(series_identity(images[0]))
    origin = shared_origin([Origin.of(image.tags, key) for image in images])
    return Series(volume, origin, measured, dict(sorted((+left_out).items())))


def _only_ct(
    folder: Path, instances: list[Instance], left_out: Counter[str], only_largest_stack: bool
) -> list[Instance]:
    found: list[list[Instance]] = []
    for group in group_series(instances).values():
        images = [instance for instance in group if instance.status == "image"]
        left_out["no_image"] += len(group) - len(images)
        measured = measure_series(images, only_largest_stack)
        if not images:
            continue
        if not measured["is_ct_image"]:
            left_out["not_ct"] += len(images)
        elif measured["is_localizer"]:
            left_out["localizer"] += len(images)
        else:
            found.append(images)
    if len(found) == 1:
        return found[0]
    seen = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count) or "no file"
    if not found:
        raise UserError(f"folder {folder.name}: no CT image in it ({seen}); allowed: a folder with one CT series")
    sizes = ", ".join(str(n) for n in sorted((len(images) for images in found), reverse=True)[:8])
    raise UserError(f"folder {folder.name}: {len(found)} CT series in it, of {sizes} images; allowed: one in a folder")
