"""Whose chance a figure carries: patients by the bootstrap, untrained encoders as a random effect.

Patients. A figure takes weights (replicates + 1, cases): row 0 is ones and gives the figure itself, each other row says
how often a case's patient was drawn (Efron, Ann. Stat. 1979; whole patients, since cases of one are not independent).
The rows give the figure's standard error only. Limits come from Student's t about the figure itself, for shares on the
logit scale. Percentiles of the rows are kept (:func:`percentile_interval`), but with few patients they are too narrow,
and where a gallery is drawn as well they lie off the figure: patients drawn twice are found twice.

Untrained encoders. On patients P the figure of encoder e is m_e(P) = mu_e + a(P) + b_e(P): mu_e on all patients, a what
these patients do to every encoder, b_e what they do to this one. Of untrained encoders mu_s has variance sigma^2, b_s
tau^2. That is the two-way layout of reader studies, encoders for readers (Obuchowski and Rockette, Commun. Stat. 1995;
Hillis, Stat. Med. 2007); degrees of freedom are Satterthwaite's (Biometrics 1946).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from components.figures.arrays import Array

UNBOUNDED = (-math.inf, math.inf)
SHARE = (0.0, 1.0)
LEVEL = 0.95
STILL = 1e-12  # below it, replicates differ by rounding only


@dataclass(frozen=True)
class Draws:
    """How often each patient is drawn in each replicate.

    Attributes:
        patients: unique keys, sorted.
        counts: (replicates + 1, patients); row 0 is ones.
    """

    patients: tuple[str, ...]
    counts: Array

    def weights(self, patients: Sequence[str]) -> Array:
        """Weights (replicates + 1, cases) of cases that belong to ``patients``, in any order, each any number of times.

        Raises:
            ValueError: a case's patient took no part in the draw.
        """
        columns = {patient: column for column, patient in enumerate(self.patients)}
        missing = len({patient for patient in patients if patient not in columns})
        if missing:
            raise ValueError(f"resampling: {missing} patients with cases are not among the {len(columns)} drawn")
        taken: Array = self.counts[:, [columns[patient] for patient in patients]]
        return taken


def draws(patients: Sequence[str], replicates: int, seed: int) -> Draws:
    """Draw as many patients as there are, with replacement, ``replicates`` times.

    The draw depends on the set of patients and the seed alone: tasks with the same patients share it, so their figures
    can be averaged or compared replicate by replicate, and the order of rows changes nothing.

    Raises:
        ValueError: no patient, or no replicate.
    """
    unique = tuple(np.unique(np.asarray(patients, dtype=np.str_)).tolist())
    if not unique:
        raise ValueError("resampling: 0 patients cannot be drawn from: at least 1")
    if replicates < 1:
        raise ValueError(f"resampling: replicates {replicates} is not allowed: at least 1")
    digest = hashlib.sha256("\n".join([str(seed), *unique]).encode()).digest()
    generator = np.random.default_rng(list(digest))
    drawn = generator.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=replicates)
    return Draws(unique, np.vstack([np.ones((1, len(unique))), drawn.astype(np.float64)]))


def together(*sides: Draws) -> Draws:
    """One draw over the patients of several sides, each side drawn by itself: as many test patients as there are, and
    as many of the training side. The gallery of a retrieval holds both, its queries the first.

    Raises:
        ValueError: a patient on two sides, or other numbers of replicates.
    """
    patients = np.concatenate([np.asarray(side.patients, dtype=np.str_) for side in sides])
    unique, order = np.unique(patients, return_index=True)
    if len(unique) < len(patients):
        raise ValueError(f"resampling: {len(patients) - len(unique)} patients are on two sides: each on one")
    rows = sorted({len(side.counts) for side in sides})
    if len(rows) > 1:
        raise ValueError(f"resampling: sides with {rows} rows cannot be joined: the same number of replicates for all")
    return Draws(tuple(unique.tolist()), np.hstack([side.counts for side in sides])[:, order])


@dataclass(frozen=True)
class Estimate:
    """A figure or a difference with its standard error, and what follows from both by Student's t.

    Attributes:
        value: the figure itself.
        error: standard error; 0 where no replicate differs.
        freedom: degrees of freedom of the error.
        bounds: what values are possible. Limits are found on the logit scale between two bounds and on the log scale
            above one, so they stay inside and are uneven where the figure is close to a bound.
    """

    value: float
    error: float
    freedom: float
    bounds: tuple[float, float] = UNBOUNDED

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not low <= self.value <= high:
            raise ValueError(f"resampling: a figure of {self.value} is not allowed: from {low} to {high}")

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided limits. ``low > x`` just where ``p_above(x) < (1 - level) / 2``, unless no replicate differs.

        Then they are the figure itself; but of a share that is 0 or 1 in every patient they are Clopper and Pearson's
        (Biometrika 1934): 8 of 8 patients are not all patients.
        """
        tail = (1 - level) / 2
        low, high = self.bounds
        if self._same_in_all():
            reach = (high - low) * (1 - tail ** (1 / (self.freedom + 1))) if self._whole() else 0.0
            return (self.value - reach, high) if self.value == high else (self.value, self.value + reach)
        half = float(stats.t.isf(tail, self.freedom)) * self.error * self._slope()
        centre = self._scaled(self.value)
        return self._unscaled(centre - half), self._unscaled(centre + half)

    def p_above(self, bound: float = 0.0) -> float:
        """One-sided p-value of "the true value is not above ``bound``": small where it clearly is."""
        return self._p(bound, 1)

    def p_below(self, bound: float = 0.0) -> float:
        """One-sided p-value of "the true value is not below ``bound``"."""
        return self._p(bound, -1)

    def p_two_sided(self, bound: float = 0.0) -> float:
        """p-value of "the true value is ``bound``"."""
        return min(1.0, 2 * min(self.p_above(bound), self.p_below(bound)))

    def _p(self, bound: float, sign: int) -> float:
        low, high = self.bounds
        if sign * (self.value - bound) <= 0 and (self._same_in_all() or not low < bound < high):
            return 1.0
        if self._same_in_all():  # as the limits; elsewhere as a sign test of patients who all say the same
            share = (bound - low) / (high - low) if self._whole() else 0.5
            return float((share if sign > 0 or not self._whole() else 1 - share) ** (self.freedom + 1))
        if not low < bound < high:
            return 0.0
        distance = sign * (self._scaled(self.value) - self._scaled(bound))
        return float(stats.t.sf(distance / (self.error * self._slope()), self.freedom))

    def _same_in_all(self) -> bool:
        return self.error == 0 or self.value in self.bounds

    def _whole(self) -> bool:
        return self.value in self.bounds and math.isfinite(self.bounds[1] - self.bounds[0])

    def _scaled(self, value: float) -> float:
        low, high = self.bounds
        if math.isinf(low):
            return value
        return math.log(value - low) - (0.0 if math.isinf(high) else math.log(high - value))

    def _slope(self) -> float:
        """Of the scale at the figure: what an error of the figure is there."""
        low, high = self.bounds
        if math.isinf(low):
            return 1.0
        return 1 / (self.value - low) + (0.0 if math.isinf(high) else 1 / (high - self.value))

    def _unscaled(self, scaled: float) -> float:
        low, high = self.bounds
        if math.isinf(low):
            return scaled
        if math.isinf(high):
            return low + math.exp(scaled)
        return low + (high - low) * float(special.expit(scaled))


@dataclass(frozen=True)
class Sample:
    """How many patients a figure rests on, see :func:`sample_of`.

    Attributes:
        patients: how many there are.
        freedom: degrees of freedom of a variance over them.
        inflation: what the bootstrap's variance is multiplied by, as n / (n - 1) for a mean.
    """

    patients: int
    freedom: float
    inflation: float


def sample_of(patients: Sequence[str], labels: Sequence[str] | None = None) -> Sample:
    """The sample of test cases: n patients have n - 1 degrees of freedom, or fewer where a class has few of them.

    A figure that averages over classes, or sets one against the other (AUC, balanced accuracy, mAP), is as unsure as
    its rarest class: with 3 patients of one class and 21 of the other, 2.6 degrees of freedom and not 23. They are
    Welch's (Biometrika 1947) for means of classes that vary alike, at most n - 1. With 4 to 8 patients of the rarest
    class and encoders far apart (AUC .92 and .80) nominal 95 % limits of a difference still hold it in 87 to 92 % of
    samples only, percentiles in 79 to 85 %; they miss by being too low, which lets nothing pass.

    Args:
        patients: (cases,).
        labels: (cases,) classes; None for a figure that knows none.

    Raises:
        ValueError: fewer than 2 patients, or a class of fewer than 2.
    """
    count = len(set(patients))
    if count < 2:
        raise ValueError(f"resampling: a figure of {count} patients has no interval: at least 2 patients")
    if labels is None:
        return Sample(count, count - 1, count / (count - 1))
    pairs = set(zip(labels, patients, strict=True))
    _, of_class = np.unique(np.asarray([label for label, _ in pairs], dtype=np.str_), return_counts=True)
    if of_class.min() < 2:
        raise ValueError(f"resampling: a class of {of_class.min()} patients has no interval: at least 2 patients")
    share = (1 / of_class) / (1 / of_class).sum()  # of the variance
    freedom = min(count - 1.0, float(1 / (share**2 / (of_class - 1)).sum()))
    # Draws have a class now smaller, now larger, which adds to its variance what is no chance of the class's mean.
    drawn = np.arange(1, count + 1)
    chances = stats.binom.pmf(drawn, count, of_class[:, None] / count)
    widened = of_class * (chances / drawn).sum(axis=1) / chances.sum(axis=1)
    return Sample(count, freedom, float((share * of_class / (of_class - 1) / widened).sum()))


def standard_error(replicates: Array, sample: Sample) -> Array:
    """Standard errors (...) of figures (..., replicates + 1) by the drawn replicates, those without a figure left out.

    Raises:
        ValueError: fewer than half of the replicates have a figure.
    """
    drawn = replicates[..., 1:]
    defined = np.isfinite(drawn)
    least, wanted = int(defined.sum(axis=-1).min()), drawn.shape[-1]
    if least * 2 < wanted or least < 2:
        raise ValueError(f"resampling: only {least} of {wanted} replicates have a figure; too few patients")
    error: Array = np.sqrt(np.nanvar(np.where(defined, drawn, np.nan), axis=-1, ddof=1) * sample.inflation)
    return np.where(error > STILL, error, 0.0)


def figure(replicates: Array, sample: Sample, bounds: tuple[float, float] = SHARE) -> Estimate:
    """A figure (replicates + 1,) and the chance of its patients.

    On the logit scale, since the plain one and percentiles miss high figures of few patients: of AUC .91 on 24 patients
    nominal 95 % limits held the truth in 84 % and 86 % of simulated samples, these in 96 to 98 %. That scale makes up
    for rare classes, so n - 1 degrees of freedom are enough.
    """
    everybody = Sample(sample.patients, sample.patients - 1, sample.patients / (sample.patients - 1))
    error = float(standard_error(replicates, everybody))
    return Estimate(float(replicates[0]), error, everybody.freedom if error else sample.freedom, bounds)


def paired(ours: Array, theirs: Array, sample: Sample) -> Estimate:
    """Difference, ours less theirs, of two encoders on the same cases and draws; both (replicates + 1,).

    Both are taken as they are: nothing here says what another training run, or another seed, would give.
    """
    difference = ours - theirs
    return Estimate(float(difference[0]), float(standard_error(difference, sample)), sample.freedom)


@dataclass(frozen=True)
class BesideUntrained:
    """An encoder beside S untrained ones of its architecture.

    Attributes:
        untrained: the mean of their figures.
        spread: standard deviation of their true figures (sigma); 0 where they differ no more than patients explain.
        to_another: difference to one more untrained encoder, on all patients: a prediction. An encoder is better than
            untrained ones where this is above 0; of untrained encoders 2.5 % are.
        to_mean: difference to the mean of all untrained encoders: a confidence interval. Up to half of all untrained
            encoders lie above it, however many patients there are: nothing is gated on it.
        rank: share of encoders, this one counted, whose figure is at least its own: the p-value of "it is an untrained
            one" that assumes nothing but exchangeable encoders, never below 1 / (S + 1).
    """

    untrained: float
    spread: float
    to_another: Estimate
    to_mean: Estimate
    rank: float


def beside_untrained(ours: Array, untrained: Array, sample: Sample) -> BesideUntrained:
    """Hold an encoder beside untrained ones, with the patients' chance and the seeds'.

    In the module's terms the difference d of m_e and the mean of the m_s has the variance v over draws of patients,
    which the bootstrap gives. The m_s have the variance s2 among each other on the same patients: sigma^2 + tau^2.
    tau^2 is also what the bootstrap gives for the m_s less their mean, so sigma^2 is known, and d misses mu_e - mu_s of
    another seed by v + (1 + 1/S) sigma^2, and mu_e - mu by v + sigma^2 / S. For an untrained encoder the first is
    (1 + 1/S) s2 on average: Student's test of whether one more observation is of the sample.

    Args:
        ours: (replicates + 1,).
        untrained: (S, replicates + 1), on the same draws; 20 or more are worth having.
        sample: of the test cases.

    Raises:
        ValueError: fewer than 2 untrained encoders; as :func:`standard_error`.
    """
    seeds = len(untrained)
    if seeds < 2:
        raise ValueError(f"resampling: {seeds} untrained encoders are not allowed: at least 2, better 20")
    mean = untrained.mean(axis=0)
    difference = ours - mean
    value, of_patients = float(difference[0]), float(standard_error(difference, sample)) ** 2
    among = float(untrained[:, 0].var(ddof=1))
    tau2 = float((standard_error(untrained - mean, sample) ** 2).mean()) * seeds / (seeds - 1)
    return BesideUntrained(
        untrained=float(mean[0]),
        spread=math.sqrt(max(0.0, among - tau2)),
        to_another=_two_chances(value, of_patients, sample.freedom, among, tau2, seeds, 1 + 1 / seeds),
        to_mean=_two_chances(value, of_patients, sample.freedom, among, tau2, seeds, 1 / seeds),
        rank=float(1 + (untrained[:, 0] >= ours[0]).sum()) / (seeds + 1),
    )


def gate_level(seeds: int, share: float = 0.05, confidence: float = 0.95) -> float:
    """The level for ``to_another.p_above()`` at which no more than ``share`` of all untrained encoders pass.

    Levels are promises over many samples of seeds, but a gate has one. At .025 with 20 seeds 3 % pass on average, but
    more than 5 % with one sample of seeds in five. At this level they are at most ``share`` with ``confidence``, by the
    one-sided tolerance bound of a normal sample (Hahn and Meeker, Statistical Intervals, 1991): .015 for 20 seeds. Of
    179 untrained encoders on four tasks, three of them real, more than 5 % passed with 2 to 10 % of such samples.
    """
    bound = stats.nct.ppf(confidence, seeds - 1, stats.norm.isf(share) * math.sqrt(seeds)) / math.sqrt(seeds)
    return float(stats.t.sf(bound / math.sqrt(1 + 1 / seeds), seeds - 1))


def _two_chances(
    value: float, of_patients: float, freedom: float, among: float, tau2: float, seeds: int, share: float
) -> Estimate:
    """Patients' variance and ``share`` of the seeds' own, sigma^2 = among - tau2; freedom by Satterthwaite."""
    beyond = of_patients - share * tau2  # what patients add that they do not among untrained encoders
    of_seeds = share * among
    variance = max(of_patients, beyond + of_seeds)
    uncertain = beyond**2 / freedom + of_seeds**2 / (seeds - 1)
    if variance == of_patients or uncertain == 0:
        return Estimate(value, math.sqrt(variance), freedom)
    # Satterthwaite's holds for independent parts. These come from the same patients, so that taking one off the other
    # leaves no less than the smaller of both: without it, limits of steady encoders held in 98 to 99 % of samples.
    return Estimate(value, math.sqrt(variance), max(variance**2 / uncertain, min(seeds - 1, freedom)))


def percentile_interval(figures: Array) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile over the replicates (all but row 0), those without a figure (NaN) left out.

    Raises:
        ValueError: fewer than half of the replicates have a figure.
    """
    finite = drawn_figures(figures)
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def drawn_figures(figures: Array) -> Array:
    """The figures of those replicates (all but row 0) that have one; raises as :func:`percentile_interval`."""
    drawn = figures[1:]
    finite: Array = drawn[np.isfinite(drawn)]
    if len(finite) * 2 < len(drawn) or not len(finite):
        raise ValueError(f"resampling: only {len(finite)} of {len(drawn)} replicates have a figure; too few patients")
    return finite
