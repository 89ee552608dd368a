"""A directory of NIfTI volumes in HU."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from components.ct.keys import patient_key, require_secret, series_key
from components.errors import UserError
from components.sources.config import SourceConfig, TransferConfig, patient_pattern
from components.sources.interface import Files, Listed, Listing, folders_up
from components.sources.roots import key_of, root_of
from components.sources.tree import (
    TABLE_SUFFIX,
    Name,
    add_to_digest,
    check_digest,
    folder_of,
    glances,
    has_map,
    keyed,
    names,
    none_found,
    own_names,
    pinned_root,
    reason_of,
    resolve,
    shown,
    stop_if_machine,
    stop_if_too_many_open,
    write_map,
)

log = logging.getLogger(__name__)

SUFFIXES = (".nii", ".nii.gz")


class NiftiSource:
    """Every ``.nii`` and ``.nii.gz`` below the line's root ``nifti`` is one series, of the patient that
    ``cohort.nifti.patient`` tells; the file itself does not."""

    def __init__(self, config: SourceConfig, place: str) -> None:
        """``place``: see ``roots.place_of``."""
        self._config, self._place = config, place
        self.version = config.source_digest or ""

    def list_series(self, held_out: frozenset[str]) -> Listing:
        require_secret("nifti")
        of, rule = self._config, self._config.nifti.patient
        if held_out and rule is None:
            raise UserError(patient_missing(key_of(self._place)))
        root = pinned_root("nifti", of.source_digest, self._place)
        digest, seen = hashlib.sha256(), {}
        for location, size, pieces in glances(root):
            add_to_digest(digest, location, size, pieces)
            seen[location] = f"{size} {pieces.hex()[:16]}"
        check_digest("nifti", of.source_digest, self._place, digest.hexdigest())
        patient_of = _patients(root, rule)
        found = [(name.location, *_measured(root, name)) for name in names(root)]
        prefix = own_names(self._place)
        listed, statuses, keys = [], [], []
        for location, size, status in found:
            volume = _without_suffix(location)
            patient = patient_of(location) if status == "image" else None
            statuses.append("no_patient" if status == "image" and not patient else status)
            keys.append(series_key(f"{prefix}nifti|{location}") if patient else "")
            if patient:
                listed.append(
                    Listed(keys[-1], patient_key(patient), volume, location, 1, size, of.collection, of.licence,
                           of.doi, members=(location,), folders=folders_up([folder_of(location)]),
                           version=seen.get(location, ""))
                )  # fmt: skip
        if not listed:
            raise none_found("nifti", ".nii or .nii.gz file" + (f" of a patient by {rule!r}" if rule else ""), statuses)
        if nobodys := statuses.count("no_patient"):
            log.warning("%d of %d volumes are left out: %s.nifti.patient tells no patient of them",
                        nobodys, nobodys + len(listed), key_of(self._place))  # fmt: skip
        files = Files([location for location, _, _ in found], (size for _, size, _ in found), statuses, keys)
        listing = Listing(sorted(listed, key=lambda s: s.series), files, digest.hexdigest())
        return shown(listing, "nifti") if of.paths == "shown" else keyed(listing, "nifti", self._place)

    def check(self) -> None:
        require_secret("nifti")
        root_of("nifti", self._place)
        if self._config.paths == "keyed" and not has_map("nifti", self._place):
            write_map("nifti", self._place)

    def fetch(
        self, row: dict[str, Any], members: list[str], folder: Path, transfer: TransferConfig
    ) -> pd.DataFrame | None:
        for location in resolve("nifti", self._place, members) if self._config.paths == "keyed" else members:
            suffix = ".nii.gz" if location.endswith(".gz") else ".nii"
            try:
                shutil.copyfile(root_of("nifti", self._place) / location, folder / f"volume{suffix}")
            except OSError as error:
                stop_if_too_many_open(error)
                raise reason_of(error) from None
        return None


def patient_missing(block: str) -> str:
    """What to say where patients are held out and nothing tells whose the volumes are. ``block``: the source's."""
    return (
        f"params.yaml: {block}.nifti.patient: null is not allowed where patients are held out for evaluation: "
        "say how a volume's path names its patient, such as '{patient}/**', '{patient}_*' or a table 'patients.csv' of "
        "the tree with the columns file and patient"
    )


def _without_suffix(location: str) -> str:
    return location.removesuffix(".gz").removesuffix(".nii")


def _patients(root: Path, rule: str | None) -> Callable[[str], str | None]:
    """From a volume's location to its patient; None where the rule tells none.

    Raises:
        UserError: the table is not in the tree, or has other columns, or names a volume twice.
    """
    if rule is None:
        return _without_suffix
    if not rule.endswith(TABLE_SUFFIX):
        pattern = patient_pattern(rule)

        def by_path(location: str) -> str | None:
            match = pattern.fullmatch(_without_suffix(location))
            return match["patient"] if match else None

        return by_path
    try:
        table = pd.read_csv(root / rule, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # of pandas' own, too
        raise UserError(f"cohort.nifti.patient: {rule!r} cannot be read ({type(error).__name__})") from None
    if not {"file", "patient"} <= set(table) or table["file"].duplicated().any():
        raise UserError(f"cohort.nifti.patient: {rule!r}: wanted are the columns file and patient, each file once")
    return dict(zip(table["file"], table["patient"].str.strip(), strict=True)).get


def _measured(root: Path, name: Name) -> tuple[int, str]:
    """Size and status: ``image``, ``empty``, ``not_nifti``, ``vanished``, ``unreadable`` or that of the name."""
    if name.status:
        return 0, name.status
    try:
        with (root / name.location).open("rb") as stream:
            size = stream.seek(0, 2)
    except FileNotFoundError:
        return 0, "vanished"
    except OSError as error:
        stop_if_machine(error)
        return 0, "unreadable"
    return size, "not_nifti" if not name.location.endswith(SUFFIXES) else "image" if size else "empty"
