"""Which scan of a labelled set each mask of its folder is of."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from components.cohort.labelled import Matched, by_key
from components.command import masks_slice
from components.ct.keys import file_key, require_secret
from components.errors import UserError
from components.files import write_json
from components.sources.idc_masks import cited, find_idc_masks
from components.sources.interface import Listing
from components.sources.masks import ROOT, Found, Mask, MasksConfig
from components.sources.sets import LabelledSet
from components.sources.tree import own_names, write_map
from components.tables import write_table

log = logging.getLogger(__name__)

COLUMNS = ("series", "set", "number", "location", "structure", "sha256", "files", "bytes")
COUNTS = frozenset({"number", "files", "bytes"})
FILE_SUFFIXES = ("", ".nii.gz", ".nii")  # a scan's file is named without


@dataclass(frozen=True)
class OfScans:
    """The masks of a set's scans.

    Attributes:
        rows: a row per mask and scan, with :data:`COLUMNS`: ``number`` is a mask's place in the order of their names,
            ``location`` where it is below the folder, or its pseudonym.
        account: what of the folder and of the scans fits, and what does not.
        attribution: whose they are, where that is known; see :func:`components.sources.idc_masks.cited`.
    """

    rows: pd.DataFrame
    account: dict[str, Any]
    attribution: pd.DataFrame | None = None


def masks_of(of_set: LabelledSet, listing: Listing, found: Matched) -> OfScans | None:
    """The masks of a set's scans; None where it has none.

    A mask that its path gives to several scans is of none of them: which it was drawn on is not known. One that refers
    to several is of each.

    Args:
        of_set: the set.
        listing: of the source that holds its scans.
        found: which of these the set's table names.

    Raises:
        UserError: the masks are not the pinned ones, or none is of a scan of the set.
    """
    config = of_set.config.masks
    if config is None:
        return None
    own, rows = set(found.rows["series"]), []
    keyed = config.digest is not None and of_set.paths == "keyed"
    if keyed:
        require_secret(ROOT)
    folder = of_set.masks(config) if config.analysis_results is None else _of_index(of_set, config, listing, own)
    lost: dict[str, list[str]] = {"without_scan": [], "of_no_row": [], "of_several_scans": []}
    scans: dict[str, Mapping[str, list[str]]] = {}
    for number, mask in enumerate(folder.masks):
        location = file_key(own_names(of_set.place) + mask.location) if keyed else mask.location
        if mask.kind not in scans:
            scans[mask.kind] = by_key(listing, mask.kind)
        named = {series for key in _keys(of_set, mask) for series in scans[mask.kind].get(key, ())}
        ours = sorted(named & own)
        if why := _unused(len(named), len(ours), config.match is None):
            lost[why].append(location)
            continue
        told = (number, location, mask.structure, mask.sha256, mask.files, mask.bytes)
        rows += [(series, of_set.name, *told) for series in ours]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["series", "number"], ignore_index=True)
    if table.empty:
        lacks = ", ".join(f"{len(of)} {why.replace('_', ' ')}" for why, of in lost.items() if of)
        raise UserError(
            f"{of_set.line}.sets.{of_set.name}.masks: none of {len(folder.masks)} masks is of a scan of the set "
            f"({lacks}); masks.match says how their paths name a scan"
        )
    if keyed:
        write_map(ROOT, of_set.place)
    account = {
        "masks": len(folder.masks),
        "masks_used": int(table["number"].nunique()),
        **{f"masks_{why}": of for why, of in lost.items()},
        "files_that_are_no_mask": folder.others,
        "scans_with_masks": int(table["series"].nunique()),
        "scans_without_masks": sorted(own - set(table["series"])),
    }
    _tell(of_set, account)
    used = [folder.masks[number] for number in sorted(table["number"].unique())]
    return OfScans(table, account, None if config.analysis_results is None else cited(used))


def _of_index(of_set: LabelledSet, config: MasksConfig, listing: Listing, series: Collection[str]) -> Found:
    """What the Imaging Data Commons holds of the studies of these series."""
    assert of_set.source is not None
    assert config.analysis_results is not None
    studies = {of.study for of in listing.series if of.series in series}
    return find_idc_masks(of_set.source.idc, config.analysis_results, studies)


def _unused(named: int, ours: int, refers: bool) -> str:
    """Why a mask is not used, if it is not: by how many scans it names, and how many of these are the set's."""
    if not named:
        return "without_scan"
    if not ours:
        return "of_no_row"
    return "of_several_scans" if ours > 1 and not refers else ""


def _keys(of_set: LabelledSet, mask: Mask) -> Iterable[str]:
    for text in mask.named:
        for suffix in FILE_SUFFIXES if mask.kind == "file" else ("",):
            yield from of_set.keys_of(mask.kind, text + suffix)


def _tell(of_set: LabelledSet, account: Mapping[str, Any]) -> None:
    where = f"set {of_set.name}"
    log.info("%s: %d of %d masks are of %d scans", where, account["masks_used"], account["masks"],
             account["scans_with_masks"])  # fmt: skip
    for key, said in (
        ("masks_without_scan", "masks name no scan of the source"),
        ("masks_of_no_row", "masks are of scans that no row of the set's table names"),
        ("masks_of_several_scans", "masks are named after several scans, and used for none"),
        ("scans_without_masks", "scans have no mask"),
    ):
        if account[key]:
            log.warning("%s: %d %s, first %s", where, len(account[key]), said, account[key][0])
    if others := account["files_that_are_no_mask"]:
        log.warning("%s: files beside the masks: %s", where, ", ".join(f"{k} {n}" for k, n in others.items()))


def write_masks(found: Mapping[str, OfScans], sets: Mapping[str, LabelledSet], home: Mapping[str, int], shards: int,
                folder: Path) -> None:  # fmt: skip
    """Write of each shard ``masks.parquet``, the masks of its series, and ``names.json``, what structures are called.

    A scan that two sets have masks of takes those of the first.

    Args:
        found: set to its masks.
        sets: the line's.
        home: series to shard.
        shards: number of shards.
        folder: of the cohort.
    """
    taken: set[str] = set()
    tables = []
    for name, of in found.items():
        again = of.rows["series"].isin(taken)
        if again.any():
            log.warning("set %s: of %d scans another set's masks are taken, first %s", name,
                        of.rows.loc[again, "series"].nunique(), of.rows.loc[again, "series"].iloc[0])  # fmt: skip
        tables.append(of.rows[~again])
        taken |= set(of.rows["series"])
    empty = pd.DataFrame({name: pd.Series(dtype="int64" if name in COUNTS else "str") for name in COLUMNS})
    rows = pd.concat(tables, ignore_index=True) if tables else empty
    in_shard = rows["series"].map(home)
    for shard in range(shards):
        part, own = masks_slice(folder, shard), rows[in_shard == shard]
        write_table(part / "masks.parquet", own)
        write_json(part / "names.json", {name: _names(sets[name]) for name in sorted(own["set"].unique())})


def _names(of_set: LabelledSet) -> dict[str, str]:
    assert of_set.config.masks is not None
    return {str(key): name for key, name in of_set.config.masks.names.items()}
