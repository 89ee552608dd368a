"""Figures of two scans, or more, of a patient: do they give the same numbers?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.figures.arrays import Array, Integers, check
from components.figures.similarity import cosine_similarity

CONSTANT = 1e-12  # a drawn variance of less, as a share of that of all cases, is rounding


@dataclass(frozen=True)
class Icc:
    """Intraclass correlations of single measurements (Shrout and Fleiss 1979, doi 10.1037/0033-2909.86.2.420).

    Attributes:
        agreement: (replicates, features), ICC(2,1): an offset between the scans counts as error.
        consistency: (replicates, features), ICC(3,1): it does not.
    """

    agreement: Array
    consistency: Array


def icc(measured: Array, weights: Array) -> Icc:
    """ICC(2,1) and ICC(3,1) of every feature, by the two-way analysis of variance.

    NaN where fewer than two patients were drawn, or where their values are all equal.

    Args:
        measured: (patients, scans, features); the scans are in the same order for each patient, at least two.
        weights: (replicates, patients).
    """
    check("ICC", weights, measured=measured)
    scans = measured.shape[1]
    if scans < 2:
        raise ValueError(f"ICC: {scans} scan of each patient; at least 2 are needed")
    # Sums of squares about 0 lose digits to an offset; exactly 0 for a constant feature.
    offset = measured - measured[:1, :1]
    offset = offset - offset.mean(axis=(0, 1))
    drawn = weights.sum(axis=1)[:, None]
    of_patient = offset.mean(axis=1)
    mean = weights @ of_patient / drawn
    between = scans * (weights @ np.square(of_patient) - drawn * np.square(mean))
    of_scan = np.stack([weights @ offset[:, scan] / drawn - mean for scan in range(scans)])
    of_scans = drawn * np.square(of_scan).sum(axis=0)
    residual = weights @ np.square(offset - of_patient[:, None]).sum(axis=1) - of_scans
    with np.errstate(divide="ignore", invalid="ignore"):
        ms_patient, ms_scan = between / (drawn - 1), of_scans / (scans - 1)
        ms_error = residual / ((drawn - 1) * (scans - 1))
        shared = ms_patient + (scans - 1) * ms_error
        agreement = (ms_patient - ms_error) / (shared + scans * (ms_scan - ms_error) / drawn)
        consistency = (ms_patient - ms_error) / shared
    alone = (weights > 0).sum(axis=1)[:, None] < 2
    total = (between + of_scans + residual) / drawn
    undefined = alone | (total <= CONSTANT * np.square(offset).sum(axis=1).mean(axis=0))
    return Icc(np.where(undefined, np.nan, agreement), np.where(undefined, np.nan, consistency))


def compare_pairs(first: Array, again: Array, own: Integers) -> tuple[Array, Array]:
    """Cosine of each second scan with the patient's first, and whether that is the nearest of all first scans.

    The mean of the first scans is subtracted. The first of equally near ones counts as nearest. Both are values of a
    pair, for ``averages.weighted_mean``: who is drawn decides whose pair counts, not among whom it was found; with
    fewer patients to be taken for, identification would be easier in every replicate than it is.

    Args:
        first: (patients, features).
        again: (pairs, features).
        own: (pairs,) row of ``first`` that is the same patient's.

    Returns:
        (pairs,) cosine, and (pairs,) 1 where identified, else 0.
    """
    similarity = cosine_similarity(again, first, first.mean(axis=0))
    cosine: Array = similarity[np.arange(len(own)), own]
    return cosine, (similarity.argmax(axis=1) == own).astype(np.float64)
