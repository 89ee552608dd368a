"""What became of the masks of labelled sets: which scans have a label map, of which structures, and why others have
none."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from components.command import masks_slice
from components.tables import read_table

log = logging.getLogger(__name__)


def account(
    cohort_folder: Path, shards: Sequence[int], curated: pd.DataFrame, catalogue: pd.DataFrame
) -> dict[str, Any]:
    """Set to what its masks came to; each scan with masks is one of ``rejected``, ``not_used`` and ``label_maps``.

    - ``rejected``: series that the suites reject, to the reason.
    - ``not_used``: series whose masks make no label map, to the cause.
    - ``label_maps``: how many have one; ``empty``: those of them without a labelled voxel.
    - ``structures``: name to its ``code`` and to how many scans name it (``looked_for``), have some of it (``scans``),
      have smaller structures over it (``overlapped``) or more of it than the volume holds (``partly_covered``).

    Args:
        cohort_folder: of the line.
        shards: shard numbers.
        curated: every series, with its reason.
        catalogue: of the volumes.
    """
    tables = [read_table(masks_slice(cohort_folder, shard) / "masks.parquet") for shard in shards]
    pairs = pd.concat([table[["series", "set"]] for table in tables]).drop_duplicates()
    reasons = dict(zip(curated["series"], curated["reason"], strict=True))
    rows = catalogue.set_index("series").reindex(columns=["labels_detail", "labels_found"]).fillna("")
    found: dict[str, Any] = {}
    for of_set, series in pairs.sort_values(["set", "series"]).groupby("set")["series"]:
        name = str(of_set)
        rejected = {key: reasons[key] for key in series if reasons[key]}
        kept = rows.loc[[key for key in series if key not in rejected]]
        maps = {str(key): json.loads(text) for key, text in kept["labels_found"].items() if text}
        found[name] = {
            "rejected": rejected,
            "not_used": {str(key): detail for key, detail in kept["labels_detail"].items() if detail},
            "label_maps": len(maps),
            "empty": sorted(key for key, of in maps.items() if not any(told["voxels"] for told in of.values())),
            "structures": _structures(maps),
        }
        _tell(name, found[name])
    return found


def _structures(maps: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {}
    for of in maps.values():
        for name, told in of.items():
            own = found.setdefault(
                name, {"scans": 0, "looked_for": 0, "code": "", "overlapped": 0, "partly_covered": 0}
            )
            own["looked_for"] += 1
            own["scans"] += told["voxels"] > 0
            own["code"] = own["code"] or told.get("code", "")
            own["overlapped"] += "overlapped" in told
            own["partly_covered"] += "covered" in told
    return dict(sorted(found.items()))


def _tell(name: str, of: dict[str, Any]) -> None:
    counts = ", ".join(f"{structure} {told['scans']}" for structure, told in list(of["structures"].items())[:20])
    more = f" and {len(of['structures']) - 20} more" if len(of["structures"]) > 20 else ""
    log.info("set %s: %d scans have a label map: %s%s", name, of["label_maps"], counts or "of no structure", more)
    for series, detail in of["not_used"].items():
        log.warning("set %s: series %s: masks not used: %s", name, series, detail)
    for series in of["empty"]:
        log.warning("set %s: series %s: nothing is labelled in its masks", name, series)
    for series, reason in of["rejected"].items():
        log.warning("set %s: series %s has masks, and is rejected: %s", name, series, reason)
    for structure, told in of["structures"].items():
        if told["overlapped"]:
            log.warning("set %s: in %d scans a smaller structure lies over %s, and holds there", name,
                        told["overlapped"], structure)  # fmt: skip
