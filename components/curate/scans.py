"""The same scan under two names: an archive may hold a patient of an evaluation set again, as another patient.

Patients are compared by key, which says nothing of that. Bytes and voxels do.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from components.ct.store import StoredVolume
from components.tables import read_table

PRETRAIN = "pretrain"
# Of one scan these are equal to the last digit; of two they never are all. Only series that agree in them are read.
MEASURED = ("n0", "n1", "n2", "extent_mm", "body_median_hu", "hu_p50", "noise_hu", "hu_min", "hu_max", "hu_levels")


def same_scans(cohort: pd.DataFrame, catalogue: pd.DataFrame, data: Path, shards: tuple[int, ...]) -> dict[str, str]:
    """Series to pretrain on whose scan is one of an evaluation set, or held out, too: to a series of that.

    Args:
        cohort: columns series, role, shard.
        catalogue: of the volumes.
        data: the line's data folder, with receipts and volumes.
        shards: shard numbers.
    """
    role = dict(zip(cohort["series"], cohort["role"], strict=True))
    shard = dict(zip(cohort["series"], cohort["shard"], strict=True))
    found = _by_bytes(role, [data / "acquire" / str(number) / "files.parquet" for number in shards])
    volumes = {s: data / "preprocess" / str(n) / "volumes" / f"{s}.b2nd" for s, n in shard.items()}
    return {**_by_voxels(role, catalogue, volumes), **found}


def _by_bytes(role: dict[str, str], tables: list[Path]) -> dict[str, str]:
    """By a file that both have, as the receipts hash them. Tables are read one by one: all may not fit into memory."""
    known: dict[str, str] = {}
    for path in tables:
        files = read_table(path)
        kept_out = files[(files["series"].map(role) != PRETRAIN) & (files["bytes"] > 0)]  # all empty files are alike
        known.update(zip(kept_out["sha256"], kept_out["series"], strict=True))
    found: dict[str, str] = {}
    for path in tables if known else []:
        files = read_table(path)
        shared = files[(files["series"].map(role) == PRETRAIN) & files["sha256"].isin(list(known))]
        found.update({series: known[sha] for series, sha in zip(shared["series"], shared["sha256"], strict=True)})
    return found


def _by_voxels(role: dict[str, str], catalogue: pd.DataFrame, volumes: dict[str, Path]) -> dict[str, str]:
    """By all voxels, whatever the headers say."""
    if not set(MEASURED) <= set(catalogue):  # nothing was decoded
        return {}
    decoded = catalogue[catalogue["decoded"].astype(bool)]
    alike: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for series, *values in decoded[["series", *MEASURED]].itertuples(index=False):
        alike[tuple(values)].append(series)
    found: dict[str, str] = {}
    for several in alike.values():
        others = [series for series in several if role[series] != PRETRAIN]
        if others and len(others) < len(several):
            kept_out = {series: StoredVolume(volumes[series]).read().hu for series in others}
            for series in several:
                if role[series] == PRETRAIN:
                    hu = StoredVolume(volumes[series]).read().hu
                    twin = next((key for key, other in kept_out.items() if np.array_equal(hu, other)), None)
                    found.update({series: twin} if twin else {})
    return found
