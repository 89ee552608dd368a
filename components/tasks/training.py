"""What a classify task trains besides its probes, as figures beside theirs; all parts of the task at once.

Methods are those of the probes: ``encoder``, and under ``random_<seed>`` what began with that untrained encoder. So
"beside untrained encoders" reads, of a fine-tuned figure, "beside training from scratch", and all that compares, gates
too, holds for it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from components.figures.arrays import Array, Integers
from components.figures.classification import macro_auc
from components.models.embed import Embedder, fixed_threads
from components.models.heads import Linear
from components.progress import track
from components.tasks import attentive, fine_tune
from components.tasks.asked import Asked, Seen, generator_of, seen_by
from components.tasks.few_shot import FINE_TUNED, SCRATCH, Curves, drawn
from components.tasks.fine_tune import Rates
from components.tasks.interface import Question
from components.tasks.judging import Part, judge_probabilities
from components.tasks.probes import fit_linear
from components.tasks.scores import DIGITS, ENCODER, RANDOM, Score
from components.tasks.trained import FineTuneConfig

WORKERS = 2  # cores; of a GPU's memory, two encoders
ItemT = TypeVar("ItemT")
ReadyT = TypeVar("ReadyT")
DoneT = TypeVar("DoneT")


@dataclass(frozen=True)
class Trained:
    """What training found.

    Attributes:
        scores, cases: as of :class:`components.tasks.interface.Outcome`.
        curves: part to AUC with few labels, of methods ``fine_tuned`` and ``scratch``.
    """

    scores: list[Score] = field(default_factory=list)
    cases: list[pd.DataFrame] = field(default_factory=list)
    curves: dict[str, Curves] = field(default_factory=dict)

    def add(self, method: str, probe: str, answers: Mapping[str, tuple[Part, Array]]) -> None:
        """Judge a method's probabilities of every part's test cases."""
        for part, probabilities in answers.values():
            scores, cases = judge_probabilities(part, method, probe, probabilities)
            self.scores.extend(scores)
            self.cases.append(cases)


def trained(question: Question, parts: Sequence[Part], curved: Collection[str]) -> Trained:
    """Whatever of fine-tuning and attention the block asks for.

    Args:
        question: with a block of kind classify.
        parts: of its table.
        curved: those that have a curve against the number of labels.
    """
    found, task = Trained(), question.task
    with seen_by(question.encoders[ENCODER](), question.rows, question.volumes) as seen:
        if task.attentive is not None:
            _attend(question, parts, seen, found)
        if task.fine_tune is not None:
            _fine_tune(question, parts, seen, found)
            _few_shot(question, [part for part in parts if part.name in curved], seen, found)
    return found


def side_by_side(
    prepare: Callable[[ItemT], ReadyT],
    work: Callable[[ReadyT], DoneT],
    items: Sequence[ItemT],
    label: str,
) -> Iterator[tuple[ItemT, DoneT]]:
    """Work on two items at a time, a thread and a core for each: small encoders gain little by two for one of them.

    Args:
        prepare: done one after another, since it may draw from generators that all threads share.
        work: done side by side; with one thread, the order of its additions is always the same.
        items: yielded in their order with what was done.
        label: of the progress.
    """

    def done() -> Iterator[tuple[ItemT, DoneT]]:
        with ThreadPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for first in range(0, len(items), WORKERS):
                some = items[first : first + WORKERS]
                yield from zip(some, pool.map(work, [prepare(item) for item in some]), strict=True)

    with fixed_threads(1):
        yield from track(done(), [1] * len(items), label)


def _attend(question: Question, parts: Sequence[Part], seen: Seen, found: Trained) -> None:
    config = question.task.attentive
    asked = _Together.of([(part, Asked.of(part, seen)) for part in parts])
    places = asked.tested(seen)

    def work(embedder: Embedder) -> list[Array]:
        generator = generator_of(question.config.seed, "attentive")  # the same start and order for all
        with attentive.tokens_of(embedder, seen) as tokens:
            model = attentive.attentive(tokens, asked.distinct, config, generator, embedder.device)
            return attentive.probabilities(model, tokens, places, embedder.device)

    methods = [ENCODER, *_untrained(question, config.untrained)]
    for method, answers in side_by_side(lambda name: question.encoders[name](), work, methods, "attending"):
        found.add(method, "attentive", asked.answers(seen, places, answers))


def _fine_tune(question: Question, parts: Sequence[Part], seen: Seen, found: Trained) -> None:
    chosen = [(part, np.flatnonzero(~part.test)) for part in parts]

    def prepare(method: str) -> _Run:
        return _Run.of(question, method, chosen, seen, "all", question.task.fine_tune.steps)

    methods = [ENCODER, *_untrained(question, question.task.fine_tune.scratch)]
    for method, answers in side_by_side(prepare, _Run.answers, methods, "fine-tuning"):
        found.add(method, FINE_TUNED, answers)


def _few_shot(question: Question, parts: Sequence[Part], seen: Seen, found: Trained) -> None:
    config: FineTuneConfig = question.task.fine_tune
    seeds = _untrained(question, config.few_shot_draws)

    def rows_of(count: int, draw: int) -> list[tuple[Part, Integers]]:
        rows = [(part, drawn(part, count, draw, question.config.seed)) for part in parts]
        return [(part, of) for part, of in rows if of is not None]

    def prepare(run: tuple[int, int, str]) -> _Run:
        count, draw, name = run
        method = ENCODER if name == FINE_TUNED else seeds[draw]
        return _Run.of(question, method, rows_of(count, draw), seen, f"{count}/{draw}", config.few_shot_steps)

    runs = [
        (count, draw, name)
        for count, draw in itertools.product(sorted(question.task.few_shot or ()), range(len(seeds)))
        if rows_of(count, draw)
        for name in (FINE_TUNED, SCRATCH)
    ]
    aucs: dict[str, dict[tuple[str, int], list[Array]]] = {}
    for (count, _, name), answers in side_by_side(prepare, _Run.answers, runs, "fine-tuning with few labels"):
        for part, answer in answers.values():
            auc = macro_auc(np.round(answer, DIGITS), part.labels[part.test], part.classes, part.weights)
            aucs.setdefault(part.name, {}).setdefault((name, count), []).append(auc)
    found.curves.update({part: {key: np.stack(of) for key, of in curves.items()} for part, curves in aucs.items()})


@dataclass(frozen=True)
class _Run:
    """One fine-tuning, ready to begin.

    Attributes:
        embedder: before its first step; training changes it.
        asked, starts: what it is trained on, and its probes there.
        rates, steps, config: of learning.
        generator: the same order and flips for all encoders.
        seen: by it.
    """

    embedder: Embedder
    asked: _Together
    starts: list[Linear]
    rates: Rates
    steps: int
    config: FineTuneConfig
    generator: np.random.Generator
    seen: Seen

    @classmethod
    def of(
        cls, question: Question, method: str, chosen: Sequence[tuple[Part, Integers]], seen: Seen, what: str, steps: int
    ) -> _Run:
        """Of a method's encoder, on rows of the parts."""
        config: FineTuneConfig = question.task.fine_tune
        asked = _Together.of([(part, Asked.of(part, seen, rows)) for part, rows in chosen])
        starts: dict[int, Linear] = {}
        for index, (part, rows) in zip(asked.index, chosen, strict=True):
            features = question.features.of(method, part.rows.iloc[rows])
            starts[index] = fit_linear(features, part.labels[rows], part.classes, question.config.linear_c)
        rates = Rates(config.learning_rate, config.head_learning_rate, config.layer_decay)
        if method != ENCODER:
            rates = Rates(config.scratch_learning_rate, config.head_learning_rate, 1.0)
        generator = generator_of(question.config.seed, "fine_tune", what)
        ordered = [starts[index] for index in range(len(starts))]
        embedder = copy.deepcopy(question.encoders[method]())  # others have the same one
        return cls(embedder, asked, ordered, rates, steps, config, generator, seen)

    def answers(self) -> dict[str, tuple[Part, Array]]:
        """Train; each part with the probabilities of its test cases."""
        heads = fine_tune.tuned(
            self.embedder, self.seen, self.asked.distinct, self.starts, self.rates, self.steps, self.config,
            self.generator,
        )  # fmt: skip
        places = self.asked.tested(self.seen)
        return self.asked.answers(self.seen, places, fine_tune.probabilities(self.embedder, heads, self.seen, places))


@dataclass(frozen=True)
class _Together:
    """Parts that are trained together; those with the same training cases have one head.

    Attributes:
        parts: all of them.
        distinct: what their heads are trained on.
        index: of each part's head.
    """

    parts: tuple[Part, ...]
    distinct: tuple[Asked, ...]
    index: tuple[int, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Part, Asked]]) -> _Together:
        """An external set's part trains on the cases of the task itself: they must not count twice."""
        distinct: list[Asked] = []
        keys: dict[tuple[bytes, bytes, int], int] = {}
        index = []
        for _, asked in pairs:
            order = np.argsort(asked.places)
            key = asked.places[order].tobytes(), asked.classes[order].tobytes(), asked.count
            if key not in keys:
                keys[key] = len(distinct)
                distinct.append(asked)
            index.append(keys[key])
        return cls(tuple(part for part, _ in pairs), tuple(distinct), tuple(index))

    def tested(self, seen: Seen) -> Integers:
        """Rows of what is seen of all test cases, sorted."""
        places: Integers = np.unique(np.concatenate([seen.rows(part.rows[part.test]) for part in self.parts]))
        return places

    def answers(self, seen: Seen, places: Integers, of_heads: Sequence[Array]) -> dict[str, tuple[Part, Array]]:
        """Each part with the probabilities (test cases, classes) of its own, from those of ``places`` by every head."""
        found = {}
        for part, index in zip(self.parts, self.index, strict=True):
            at = np.searchsorted(places, seen.rows(part.rows[part.test]))
            found[part.name] = part, of_heads[index][at]
        return found


def _untrained(question: Question, count: int) -> list[str]:
    return [f"{RANDOM}_{seed}" for seed in question.config.random_seeds[:count]]
