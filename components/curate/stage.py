"""Stage ``curate``: judge the volumes, account for every series and name the training set."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from components.curate import labels, scans
from components.curate.config import CurateConfig
from components.curate.suite import volumes_suite
from components.errors import UserError
from components.files import write_json
from components.quality import drift, judge
from components.tables import read_table, write_table

log = logging.getLogger(__name__)

EVALUATION_SCAN = "evaluation_scan"
SHOWN = 4  # reasons named in an error
ACCOUNT = ["series", "patient", "name", "source", "collection", "role", "split", "retest_of", "shard"]


def curate(data: Path, shards: tuple[int, ...], config: CurateConfig, folder: Path) -> pd.DataFrame:
    """Write ``curated.parquet`` (every series of the cohort, with status, reason and ``same_scan``: the series of an
    evaluation set that is the same scan under another name, or ''), ``training.parquet`` (see :func:`training_set`),
    ``annotations.parquet`` (of accepted series), ``volumes.parquet`` (the judged catalogue), ``labels.json`` (what
    became of the masks of labelled sets), ``funnel.json``, ``quality.json`` and ``profile.json`` (the training set's
    data profile, which stage ``drift`` holds beside the champion's).

    Args:
        data: the line's data folder.
        shards: shard numbers.
        config: thresholds of the suite *volumes*.
        folder: output.

    Raises:
        UserError: a critical expectation failed; the shards are not those of the cohort; or nothing is left to train
            on: then ``funnel.json`` tells why.
    """
    cohort = read_table(data / "cohort" / "cohort.parquet")
    screened = _concat([data / "screen" / str(s) / "screened.parquet" for s in shards])
    catalogue = _concat([data / "preprocess" / str(s) / "catalogue.parquet" for s in shards])
    if lost := len(set(cohort.loc[cohort["shard"] >= 0, "series"]) - set(screened["series"])):
        raise UserError(f"screen: {lost} of the cohort's series are in none of the shards; run `dvc repro`")
    suite = volumes_suite(config, rows=int(screened["accepted"].sum()))
    judgement = judge.judge(catalogue, suite)
    catalogue["accepted"] = ~catalogue["series"].isin(list(judgement.reasons))
    catalogue["reason"] = [";".join(judgement.reasons.get(s, [])) for s in catalogue["series"]]
    twins = scans.same_scans(cohort, catalogue, data, shards)
    _reject_twins(catalogue, twins)
    curated = _account(cohort, screened, catalogue, data)
    curated["same_scan"] = [twins.get(series, "") for series in curated["series"]]
    write_funnel(curated, folder / "funnel.json")
    write_json(folder / "labels.json", labels.account(data / "cohort", shards, curated, catalogue))
    write_table(folder / "curated.parquet", curated)
    write_table(folder / "training.parquet", training_set(curated))
    write_table(folder / "volumes.parquet", catalogue)
    annotations = _concat([data / "acquire" / str(s) / "annotations.parquet" for s in shards])
    kept = annotations["series"].isin(curated.loc[curated["accepted"], "series"])
    write_table(folder / "annotations.parquet", annotations[kept])
    write_json(
        folder / "quality.json", {"suite": suite.name, "rules": judgement.results, "warnings": judgement.warnings}
    )
    log.info("%d of %d series accepted, %d to pretrain on", int(curated["accepted"].sum()), len(curated),
             int((curated["accepted"] & (curated["role"] == "pretrain")).sum()))  # fmt: skip
    write_json(folder / "profile.json", drift.profile(curated, screened, catalogue))
    for warning in judgement.warnings:
        log.warning("expected %s", warning)
    return curated


def training_set(curated: pd.DataFrame) -> pd.DataFrame:
    """What is pretrained on, by key: series, and its volume's digest. A training depends on nothing else, so that scans
    to evaluate with come and go, and shards are dealt anew, without another training."""
    rows = curated[(curated["status"] == "accepted") & (curated["role"] == "pretrain")]
    return rows[["series", "sha256"]].sort_values("series", ignore_index=True)


def write_funnel(curated: pd.DataFrame, path: Path) -> None:
    """Write ``funnel.json``. Raises UserError, when it is written, where no series is left to pretrain on."""
    counts = funnel(curated)
    write_json(path, counts)
    if not counts["accepted_by_role"].get("pretrain"):
        most = sorted(counts["rejected"].items(), key=lambda item: (-item[1], item[0]))
        why = f" ({', '.join(f'{reason} {count}' for reason, count in most[:SHOWN])})" if most else ""
        raise UserError(f"0 of {len(curated)} series are left to pretrain on{why}; see {path}")


def _reject_twins(catalogue: pd.DataFrame, twins: dict[str, str]) -> None:
    """Reject what is to be pretrained on and is a scan of an evaluation set under another name."""
    among = catalogue["series"].isin(list(twins))
    catalogue.loc[among, "accepted"] = False
    catalogue.loc[among, "reason"] = [";".join(filter(None, (reason, EVALUATION_SCAN)))
                                      for reason in catalogue.loc[among, "reason"]]  # fmt: skip
    if among.any():
        log.warning("%d series rejected: each is a scan of an evaluation set under another name", int(among.sum()))


def _concat(paths: list[Path]) -> pd.DataFrame:
    tables = [table for path in paths if len(table := read_table(path))]
    joined = pd.concat(tables, ignore_index=True) if tables else read_table(paths[0])
    return joined.sort_values("series", kind="stable", ignore_index=True)


def _account(cohort: pd.DataFrame, screened: pd.DataFrame, catalogue: pd.DataFrame, data: Path) -> pd.DataFrame:
    """One row per series of the cohort: accepted, rejected by one of the suites, in their order, or no CT at all (a
    structure set, a dose, PET, a report), and why."""
    curated = cohort[ACCOUNT].copy()
    listed = dict(zip(cohort["series"], cohort["reason"], strict=True))
    header = dict(zip(screened["series"], screened["reason"], strict=True))
    voxel = dict(zip(catalogue["series"], catalogue["reason"], strict=True))
    detail = {**dict(zip(screened["series"], screened["detail"], strict=True)),
              **dict(zip(catalogue["series"], catalogue["detail"], strict=True))}  # fmt: skip
    curated["reason"] = [listed[s] or header[s] or voxel[s] for s in curated["series"]]
    curated["detail"] = [detail.get(s, "") for s in curated["series"]]
    curated["accepted"] = curated["reason"] == ""
    others = set(screened.loc[screened["other_object"].fillna(False).astype(bool), "series"])
    fates = zip(curated["series"], curated["accepted"], strict=True)
    curated["status"] = [
        "accepted" if accepted else "not_ct" if series in others and not listed[series] else "rejected"
        for series, accepted in fates
    ]
    sizes = catalogue.set_index("series")
    for column in ("n0", "n1", "n2"):
        values = sizes[column] if column in sizes else pd.Series(dtype=float)
        curated[column] = values.reindex(curated["series"]).fillna(0).astype("int64").to_numpy()
    curated["sha256"] = sizes["sha256"].reindex(curated["series"]).fillna("").to_numpy()
    store = [(data / "preprocess" / str(shard) / "volumes" / f"{series}.b2nd").as_posix()
             for series, shard in zip(curated["series"], curated["shard"], strict=True)]  # fmt: skip
    curated["volume"] = [path if accepted else "" for path, accepted in zip(store, curated["accepted"], strict=True)]
    return curated


def funnel(curated: pd.DataFrame) -> dict[str, Any]:
    """Counts in, accepted, no CT, and CT rejected by (first) reason; and every series with its fate."""
    rejected = curated[curated["status"] == "rejected"]
    first = rejected["reason"].str.split(";").str[0]
    use = curated[curated["accepted"]]["role"].value_counts()
    return {
        "in": len(curated),
        "accepted": int(curated["accepted"].sum()),
        "not_ct": int((curated["status"] == "not_ct").sum()),
        "rejected": {str(k): int(v) for k, v in first.value_counts().sort_index().items()},
        "accepted_by_role": {str(k): int(v) for k, v in use.sort_index().items()},
        "series": curated[["series", "name", "source", "role", "status", "reason", "detail"]]
        .sort_values(["source", "name", "series"])
        .to_dict("records"),
    }
