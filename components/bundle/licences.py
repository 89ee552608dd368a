"""Whose data a model was made from, and under which licence."""

from __future__ import annotations

import pandas as pd

KEYS = ["collection", "licence", "doi"]


def licence_table(cohort: pd.DataFrame, curated: pd.DataFrame, attribution: pd.DataFrame) -> pd.DataFrame:
    """Accepted series and patients by collection, licence and DOI.

    Args:
        cohort: one row per series with collection, licence, doi.
        curated: one row per curated series with status and role.
        attribution: collection, licence, doi and the ``citation`` that the owners ask for, '' where none is known.

    Returns:
        Sorted: collection, licence, doi, pretraining_series, pretraining_patients, evaluation_series, citation.
        Collections of which nothing was accepted are not in it.
    """
    used = (curated["status"] == "accepted") & curated["role"].isin(["pretrain", "evaluation"])
    accepted = curated[used][["series", "patient", "role"]]
    joined = accepted.merge(cohort[["series", *KEYS]], on="series", how="left", validate="one_to_one")
    unknown = joined["licence"].isna() | (joined["licence"] == "")
    if unknown.any():
        raise ValueError(f"series {joined['series'][unknown].iloc[0]}: no licence in the cohort")
    rows = []
    for key, group in joined.groupby(KEYS, sort=True, dropna=False):
        pretraining = group[group["role"] == "pretrain"]
        evaluation = group[group["role"] == "evaluation"]
        rows.append((*key, len(pretraining), pretraining["patient"].nunique(), len(evaluation)))
    table = pd.DataFrame(rows, columns=[*KEYS, "pretraining_series", "pretraining_patients", "evaluation_series"])
    return table.merge(attribution[[*KEYS, "citation"]], on=KEYS, how="left", validate="one_to_one")
