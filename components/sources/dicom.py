"""A directory tree of DICOM files as a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from components.ct.archive import (
    ArchiveError,
)
from components.ct.keys import require_secret
from components.errors import UserError
from components.sources.config import SourceConfig, TransferConfig
from components.sources.dicom_tree import list_tree
from components.sources.interface import Listing
from components.sources.roots import root_of
from components.sources.tree import (
    Archives,
    check_digest,
    has_map,
    keyed,
    none_found,
    pinned_root,
    reason_of,
    resolve,
    shown,
    stop_if_too_many_open,
    write_map,
)


class DicomSource:
    """A tree of DICOM files under the line's root ``dicom``."""

    def __init__(self, config: SourceConfig, place: str) -> None:
        """``place``: see ``roots.place_of``."""
        self._config, self._place = config, place
        self.version = config.source_digest or ""

    def list_series(self, held_out: frozenset[str]) -> Listing:
        require_secret("dicom")
        pinned = self._config.source_digest
        listing = list_tree(pinned_root("dicom", pinned, self._place), self._config)
        check_digest("dicom", pinned, self._place, listing.digest)
        if not listing.series:
            raise none_found("dicom", "CT image", listing.files.status)
        if self._config.paths == "shown":
            return shown(listing, "dicom")
        return keyed(listing, "dicom", self._place)

    def check(self) -> None:
        require_secret("dicom")
        root_of("dicom", self._place)
        if self._config.paths == "keyed" and not has_map("dicom", self._place):
            write_map("dicom", self._place)

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        """Copy the members under numbered names: names from a zip are never used as paths."""
        locations = resolve("dicom", self._place, members) if self._config.paths == "keyed" else members
        in_order = sorted(enumerate(locations), key=lambda numbered: numbered[1])  # zip by zip
        with Archives(root_of("dicom", self._place)) as archives:
            for index, location in in_order:
                try:
                    with (folder / f"{index:06d}.dcm").open("wb") as stream:
                        for block in archives.blocks(location):
                            stream.write(block)
                except KeyError:
                    raise UserError(f"file {members[index]}: no longer in its zip; the source has changed") from None
                except ArchiveError:
                    # Kept as an unreadable file of the series: screening names it.
                    (folder / f"{index:06d}.dcm").write_bytes(b"")
                except OSError as error:
                    stop_if_too_many_open(error)
                    raise reason_of(error) from None
        return None
