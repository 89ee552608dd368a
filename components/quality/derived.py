"""Columns that rules name and that follow from measured ones, or from other rows of the same table.

The service calls :func:`prepare` with one series and only some of the columns: what cannot be derived is left out.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from components.sources.kinds import KINDS

# Compressed transfer syntaxes that lose nothing (PS3.5 A.4); every other one may, whatever LossyImageCompression says:
# JPEG, near-lossless JPEG-LS, JPEG 2000 and HTJ2K, video, JPEG XL, what only points to pixels, and those to come.
COMPRESSED = "1.2.840.10008.1.2.4."
LOSSLESS_SYNTAXES = {
    COMPRESSED + n for n in ("57", "58", "65", "66", "70", "80", "90", "92", "110", "201", "202")
}  # fmt: skip
# BodyPartExamined is typed at the scanner: only defined terms for CT (DICOM PS3.16 annex L) say something.
REGIONS = frozenset(re.findall(r"[A-Z]+", """
    ABDOMEN ABDOMENPELVIS ADRENAL ANKLE ARM BLADDER BONE BRAIN BREAST CALF CHEST CHESTABDOMEN CHESTABDPELVIS COLON
    CSPINE CTSPINE EAR ELBOW ESOPHAGUS EXTREMITY EYE FEMUR FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS
    IAC JAW KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG MAXILLA MEDIASTINUM NECK NECKCHEST NECKCHESTABDOMEN
    NECKCHESTABDPELV ORBIT PANCREAS PELVIS PROSTATE RECTUM RIB SELLA SHOULDER SINUS SKULL SPINE SPLEEN STERNUM STOMACH
    TEMPORALBONE THIGH THORACICAORTA THORAX TMJ TSPINE UTERUS WHOLEBODY WRIST
"""))  # fmt: skip
SIZED = [name for name, kind in KINDS.items() if kind.sized]
PER_FILE = [name for name, kind in KINDS.items() if kind.a_slice]
BY_CHANCE = 10.0  # by Bernstein's inequality, chance makes at most one shard in exp(10) larger: one in 22,000


def region(text: str) -> str:
    """BodyPartExamined in letters alone, as the standard's terms are: of several values, the first."""
    return re.sub(r"[^A-Z]", "", text.split("\\")[0].upper())


def prepare(table: pd.DataFrame) -> pd.DataFrame:
    """A copy of ``table`` with the derived columns of a receipt (it has ``positions``) or of a cohort (``plan``)."""
    derived = table.copy()
    if "positions" in derived:
        _of_headers(derived)
    elif "plan" in derived:
        _of_cohort(derived)
    elif "body_area_cm2" in derived:  # where there is no patient, that is said once
        area = _numbers(derived, "body_area_cm2")
        derived["body_area_cm2"] = area.where(area > 0)
    return derived


def _of_headers(table: pd.DataFrame) -> None:
    if _has(table, "accepted", "other_object"):  # no CT that a source has lost: not among what its rate is taken of
        others = table["other_object"].fillna(False).astype(bool)
        table["accepted"] = 1.0 if others.all() else table["accepted"].astype(float).where(~others)
    placed = table["missing_tags"] == ""
    table["repeated"] = (table["instances"] - table["positions"]).where(placed, 0).clip(lower=0)
    table["geometries"] = table[["orientations", "matrices", "pixel_spacings"]].max(axis=1)
    if "transfer_syntax" in table:
        table["lossy_syntax"] = [any(map(_may_lose, str(v).split("|"))) for v in table["transfer_syntax"]]
    if _has(table, "spacing_row_mm", "spacing_column_mm"):
        sides = pd.DataFrame({c: _numbers(table, c) for c in ("spacing_row_mm", "spacing_column_mm")})
        table["pixel_min_mm"], table["pixel_max_mm"] = sides.min(axis=1), sides.max(axis=1)
        table["pixel_aspect"] = table["pixel_max_mm"] / table["pixel_min_mm"]
    if _has(table, "rows", "columns"):
        sides = pd.DataFrame({c: _numbers(table, c) for c in ("rows", "columns")})
        table["matrix_min"], table["matrix_aspect"] = sides.min(axis=1), sides.max(axis=1) / sides.min(axis=1)
    if _has(table, "field_rows_mm", "field_columns_mm"):
        table["field_min_mm"] = table[["field_rows_mm", "field_columns_mm"]].min(axis=1)
        table["field_max_mm"] = table[["field_rows_mm", "field_columns_mm"]].max(axis=1)
    if _has(table, "gap_median_mm", "thickness_max_mm"):
        table["step_per_thickness"] = _numbers(table, "gap_median_mm") / _numbers(table, "thickness_max_mm")
    if _has(table, "thickness_min_mm", "thickness_max_mm"):
        table["thickness_ratio"] = _numbers(table, "thickness_max_mm") / _numbers(table, "thickness_min_mm")
    if _has(table, "gap_median_mm", "spacing_between_mm"):
        table["step_per_stated"] = _numbers(table, "gap_median_mm") / _numbers(table, "spacing_between_mm")
    if "body_part" in table:
        regions = {text: region(str(text)) for text in table["body_part"].dropna().unique()}
        table["body_region"] = [named if (named := regions.get(text)) in REGIONS else "" for text in table["body_part"]]
    if "frames_of_reference" in table:
        # Some de-identification (LIDC-IDRI's) gives every image a frame of its own: that says nothing of a mixture.
        frames = table["frames_of_reference"]
        table["frames_mixed"] = frames.where(frames < table["instances"], 1)
    if "orientation" in table:
        table["orientation"] = table["orientation"].replace("", None)
    if _has(table, "identifiers", "private_unknown", "burned_in", "identity_removed"):
        stated = table["identity_removed"].fillna(False).astype(bool)
        table["unstated_identifiers"] = table["identifiers"].where(~stated, "")
        table["unstated_private"] = table["private_unknown"].where(~stated, 0)
        table["unstated_burned_in"] = table["burned_in"].where(~stated, False)


def _may_lose(syntax: str) -> bool:
    return syntax.startswith(COMPRESSED) and syntax not in LOSSLESS_SYNTAXES


def _of_cohort(table: pd.DataFrame) -> None:
    for name in ("series", "patient", "collection", "licence", "doi", "retest_of", "study"):
        table[name] = table[name].fillna("")
    pretrain = table["role"] == "pretrain"
    kept_out = table["kept_out"].astype(bool) if "kept_out" in table else pd.Series(False, index=table.index)
    others = set(table.loc[~pretrain | kept_out, "patient"])
    table["leaks"] = pretrain & table["patient"].isin(others)
    table["patient_splits"] = table.groupby("patient")["split"].transform("nunique")
    patients = table[table["study"] != ""].groupby("study")["patient"].nunique()
    table["study_patients"] = table["study"].map(patients).fillna(1).astype(int)
    table["role_split"] = table["role"].astype(str) + "/" + table["split"].astype(str)
    owner = table.drop_duplicates("series").set_index("series")["patient"]
    first = table["retest_of"]
    table["retest_found"] = (first == "") | (first.map(owner) == table["patient"])
    from_idc = table["source"] == "idc"
    table["attributed"] = ~from_idc | ((table["collection"] != "") & (table["doi"] != ""))
    where = table["location"].where(from_idc)
    table["location_uses"] = where.map(where.value_counts()).fillna(1).astype(int)
    _sizes(table)
    _shares(table, pretrain)


def _sizes(table: pd.DataFrame) -> None:
    known = table["source"].isin(SIZED)
    table["files_known"] = table["files"].where(known, 1)
    table["series_mb"] = (table["bytes"] / 1e6).where(known)
    per_file = table["bytes"] / table["files"].where(table["files"] > 0)
    table["file_kb"] = (per_file / 1e3).where(table["source"].isin(PER_FILE))
    table["bytes_known"] = table["bytes"].where(known, 1)


def _shares(table: pd.DataFrame, pretrain: pd.Series[bool]) -> None:
    reason = table["reason"] if "reason" in table else pd.Series("", index=table.index)
    dealt = reason.fillna("") == ""  # a rejected series is in no shard
    table["shard_dealt"] = table["shard"].astype(float).where(dealt)
    shards = int(table["shards"].iloc[0]) if "shards" in table else max(int(table["shard"].max()) + 1, 1)
    table["shard_load"] = table["shard"].map(_shard_load(table[dealt], shards)).astype(float)
    for name in ("collection", "patient"):
        counts = table.loc[pretrain, name].value_counts()
        # Where there is but one collection, such as the phantom's, its share says nothing.
        share = counts / counts.sum() if len(counts) > 1 else counts * np.nan
        table[f"{name}_share"] = table[name].where(pretrain).map(share).astype(float)
    if "accepted" in table:
        table["pretrain_left"] = pretrain.astype(float) * table["accepted"].astype(float)


def _shard_load(table: pd.DataFrame, shards: int) -> pd.Series[float]:
    """Of each shard, series or bytes over its even share, whichever is more, less what dealing by key leaves to chance:
    ten series over four shards are never even, and a large series makes its shard large."""
    sizes = pd.DataFrame({"series": 1.0, "bytes": table["bytes"].astype(float)})
    even = sizes.sum().replace(0, np.nan) / shards
    variance = (sizes**2).sum() / shards * (1 - 1 / shards)
    largest = sizes.max() * BY_CHANCE / 3
    chance = largest + np.sqrt(largest**2 + 2 * BY_CHANCE * variance)
    return ((sizes.groupby(table["shard"]).sum() - chance) / even).max(axis=1)


def _has(table: pd.DataFrame, *columns: str) -> bool:
    return all(column in table for column in columns)


def _numbers(table: pd.DataFrame, column: str) -> pd.Series[float]:
    return pd.to_numeric(table[column], errors="coerce").astype(float)
