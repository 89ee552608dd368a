"""Figures of predicted times to an event, where some patients left before it."""

from __future__ import annotations

import numpy as np

from components.figures.arrays import Array, Bools, check
from components.figures.averages import ratio, weighted_mean

TIED = 1e-8  # risks that differ by no more are equal, as in scikit-survival
BLOCK = 512  # events compared with all cases at a time: 1,000 cases take 4 MB


def concordance(risk: Array, time: Array, event: Bools, weights: Array) -> Array:
    """Harrell's C: of the pairs whose order in time is known, the share whose risks have it, equal risks counting half.

    A pair is known where the earlier of the two had the event; at equal times, where only one had it. NaN where no such
    pair was drawn. Equal to scikit-survival's ``concordance_index_censored`` on the drawn copies (Harrell et al. 1996,
    doi 10.1002/(SICI)1097-0258(19960229)15:4<361::AID-SIM168>3.0.CO;2-4).

    Args:
        risk: (cases,), higher is earlier.
        time: (cases,) of the event, or of the last time seen without it.
        event: (cases,), False where censored.
        weights: (replicates, cases).

    Returns:
        (replicates,)
    """
    # scikit-survival takes one replicate a call: 12 s for 1,001 of 500 cases, not .01 s.
    check("concordance", weights, risk=risk, time=time, event=event)
    concordant, known = np.zeros(len(weights)), np.zeros(len(weights))
    events = np.flatnonzero(event)
    for start in range(0, len(events), BLOCK):
        block = events[start : start + BLOCK]
        later = (time[:, None] > time[block]) | ((time[:, None] == time[block]) & ~event[:, None])
        gap = risk[block] - risk[:, None]
        credit = np.where(np.abs(gap) <= TIED, 0.5, (gap > 0).astype(np.float64))
        drawn = weights[:, block]
        known += (drawn * (weights @ later.astype(np.float64))).sum(axis=1)
        concordant += (drawn * (weights @ (later * credit))).sum(axis=1)
    return ratio(concordant, known)


def integrated_brier(
    survival: Array, times: Array, time: Array, event: Bools, weights: Array, train_time: Array, train_event: Bools
) -> Array:
    """Squared error of survival probabilities, averaged over a span of time; cases seen too briefly are made up for.
    The mean of :func:`brier_by_case` over the drawn cases.

    Args:
        survival, times, time, event, train_time, train_event: as there.
        weights: (replicates, cases).

    Returns:
        (replicates,)
    """
    check("integrated Brier score", weights, survival=survival, time=time, event=event)
    return weighted_mean(brier_by_case(survival, times, time, event, train_time, train_event), weights)


def brier_by_case(
    survival: Array, times: Array, time: Array, event: Bools, train_time: Array, train_event: Bools
) -> Array:
    """Each case's part in the integrated Brier score.

    The error at t is that of S(t) against 1 for those still without event and against 0 for those who had it, weighed
    by 1 / G(t) and 1 / G(their time); those censored before t count 0. G is the share not yet censored by Kaplan and
    Meier, among the training cases, and the same in every replicate: what is drawn are the cases judged. Where G is 0,
    so is the weight. Equal to scikit-survival's ``integrated_brier_score`` (Graf et al. 1999,
    doi 10.1002/(SICI)1097-0258(19990915/30)18:17/18<2529::AID-SIM274>3.0.CO;2-5).

    Args:
        survival: (cases, times) predicted probability to be without event after each of ``times``.
        times: (times,) rising, at least two; none before the first or after the last time of the cases judged, the
            last excluded, nor after the last of the training cases.
        time: (cases,) of the event, or of the last time seen without it.
        event: (cases,), False where censored.
        train_time: (training cases,).
        train_event: (training cases,).

    Returns:
        (cases,)
    """
    _check_times(times, time, train_time)
    at_times = _inverse(not_censored(train_time, train_event, times))
    at_event = _inverse(not_censored(train_time, train_event, time))
    had_it = event[:, None] & (time[:, None] <= times)
    without = time[:, None] > times
    squared = had_it * np.square(survival) * at_event[:, None] + without * np.square(1 - survival) * at_times
    by_case: Array = np.trapezoid(squared, times, axis=1) / (times[-1] - times[0])
    return by_case


def not_censored(time: Array, event: Bools, at: Array) -> Array:
    """Share of patients not yet censored at the times ``at``, by Kaplan and Meier with censoring as the event.

    At equal times events come before censoring, so who had the event then is not at risk of being censored.
    """
    moments, which = np.unique(time, return_inverse=True)
    counts, events = (np.bincount(which, weights=each, minlength=len(moments)) for each in (np.ones(len(time)), event))
    censored = counts - events
    at_risk = np.cumsum(counts[::-1])[::-1] - events
    remaining = np.cumprod(1 - np.divide(censored, at_risk, out=np.zeros_like(censored), where=at_risk > 0))
    share: Array = np.concatenate([[1.0], remaining])[np.searchsorted(moments, at, side="right")]
    return share


def _inverse(share: Array) -> Array:
    out: Array = np.divide(1.0, share, out=np.zeros_like(share), where=share > 0)
    return out


def _check_times(times: Array, time: Array, train_time: Array) -> None:
    if len(times) < 2 or not (np.diff(times) > 0).all():
        raise ValueError(f"integrated Brier score: times {times.tolist()}; at least two, rising, are needed")
    if not len(train_time):
        raise ValueError("integrated Brier score: no training case; censoring is estimated from them")
    if times[0] < time.min() or times[-1] >= time.max() or times[-1] > train_time.max():
        raise ValueError(
            f"integrated Brier score: times {times[0]:g} to {times[-1]:g}; {time.min():g} to below {time.max():g} (the "
            f"cases judged), and to {train_time.max():g} (the training cases), is allowed"
        )
