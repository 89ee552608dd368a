"""From a pseudonym in a table back to the bytes on this machine."""

from __future__ import annotations

from components.command import data_dir
from components.errors import UserError
from components.sources.roots import place_of, root_of
from components.sources.sets import sources_of
from components.sources.tree import resolve
from components.tables import read_table


def locate(line: str, key: str) -> list[str]:
    """Where the bytes of a series or a file lie on this machine.

    Args:
        line: model line, whose cohort is looked into.
        key: of a series, or what the cohort's file table holds as a file's location.

    Returns:
        Absolute paths, sorted; members of a zip follow ``!/``. For a series of the Imaging Data Commons its address.

    Raises:
        UserError: no such key, the line has no cohort yet, or the series has no files of its own.
    """
    folder = data_dir(line, "cohort")
    if not (folder / "cohort.parquet").is_file():
        raise UserError(f"line {line}: no cohort yet; run `dvc repro cohort@{line}`")
    sources = sources_of(line)
    cohort, files = read_table(folder / "cohort.parquet"), read_table(folder / "files.parquet")
    row = cohort[cohort["series"] == key]
    found = files[(files["location"] == key) | (files["series"] == key)]
    members = found["location"].tolist()
    of_set = str([*found["set"], *row["set"], ""][0])
    source, place = (row["source"].iloc[0] if len(row) else sources[of_set].source), place_of(line, of_set)
    if len(row) and source == "idc":
        return [f"s3://{row['location'].iloc[0]}"]
    if not members and len(row):
        raise UserError(f"series {key}: source {source!r} keeps no files of its own on this machine")
    if not members:
        raise UserError(f"key {key!r}: neither a series nor a file of line {line}'s cohort")
    root = root_of(source, place).resolve()
    locations = resolve(source, place, members) if sources[of_set].paths == "keyed" else members
    return sorted(f"{root}/{location}" for location in locations)
