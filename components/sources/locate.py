"""From a pseudonym in a table back to the bytes on this machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pandas as pd

from components.command import data_dir
from components.errors import UserError
from components.sources.config import SourceConfig
from components.sources.masks import ROOT
from components.sources.roots import place_of, root_of
from components.sources.sets import sets_of, sources_of
from components.sources.tree import resolve
from components.tables import read_table


@dataclass(frozen=True)
class Located:
    """Attributes:
    paths: absolute, sorted; members of a zip follow ``!/``. Of a series of the Imaging Data Commons its address.
    remarks: a line of text for each labelled set that has to do with it.
    """

    paths: list[str]
    remarks: list[str]


def locate(line: str, key: str) -> Located:
    """Where the bytes of a series or a file lie on this machine.

    Args:
        line: model line, whose cohort is looked into.
        key: of a series, what the cohort's file table holds as a file's location, or the pseudonym of a mask.

    Raises:
        UserError: no such key, the line has no cohort yet, or the series has no files of its own.
    """
    folder = data_dir(line, "cohort")
    if not (folder / "cohort.parquet").is_file():
        raise UserError(f"line {line}: no cohort yet; run `dvc repro cohort@{line}`")
    cohort, files = read_table(folder / "cohort.parquet"), read_table(folder / "files.parquet")
    labelled = read_table(folder / "labelled.parquet")
    row = cohort[cohort["series"] == key]
    found = files[(files["location"] == key) | (files["series"] == key)]
    remarks = _remarks(found, labelled[labelled["series"].isin({key, *found["series"]})])
    if len(row) and row["source"].iloc[0] == "idc":
        return Located([f"s3://{row['location'].iloc[0]}"], remarks)
    if found.empty and row.empty:
        return _mask(line, key)
    if found.empty:
        raise UserError(f"series {key}: source {row['source'].iloc[0]!r} keeps no files of its own on this machine")
    sources = sources_of(line)
    paths: list[str] = []
    for of_set, members in found.groupby("set")["location"]:  # names that are shown may be those of several trees
        if of_set not in sources:
            raise UserError(
                f"key {key!r}: of the scans of set {of_set!r}, which {line}.sets no longer has; "
                f"`dvc repro cohort@{line}` lists the line anew"
            )
        paths += _paths(place_of(line, str(of_set)), sources[str(of_set)], members.tolist())
    return Located(sorted(set(paths)), remarks)


def _mask(line: str, key: str) -> Located:
    for name, of in sets_of(line).items():
        if of.config.masks is not None and of.config.masks.digest is not None and of.paths == "keyed":
            try:
                (location,) = resolve(ROOT, of.place, [key])
            except UserError:  # none of this set's
                continue
            return Located(
                [f"{root_of(ROOT, of.place).resolve()}/{location}"], [f"set {name}: in the folder of its masks"]
            )
    raise UserError(f"key {key!r}: neither a series nor a file of line {line}'s cohort")


def _paths(place: str, source: SourceConfig, members: list[str]) -> list[str]:
    root = root_of(source.source, place).resolve()
    return [f"{root}/{at}" for at in (resolve(source.source, place, members) if source.paths == "keyed" else members)]


def _remarks(files: pd.DataFrame, labelled: pd.DataFrame) -> list[str]:
    """Which set brings it in, as the files say; and which ones have labels of it."""
    own = files[files["set"] != ""]
    counts = sorted(Counter(zip(own["set"], own["status"], strict=True)).items())
    brought = [f"set {name}: files of its scans: {status} {count}" for (name, status), count in counts]
    rows = labelled.drop_duplicates(["set", "row"]).groupby("set")["row"]
    return brought + [f"set {name}: rows of its table that name it: {len(of)}" for name, of in rows]
