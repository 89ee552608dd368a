"""``python -m components.evaluate.rival``, stage ``rival``: the champion's own encoder at the same tasks, case by case.

Figures of two releases differ by chance of the patients; of the same patients, much of it is gone. So the champion is
kept with its encoder, and asked again, on whatever data there are now.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from components.command import data_dir, run_stage
from components.ct.grid import GridConfig
from components.errors import UserError
from components.evaluate.layout import Layout, read_cases, read_places
from components.evaluate.untrained import untrained_encoders
from components.figures.resampling import paired
from components.files import sha256_file, write_json
from components.models.embed import Embedder, described
from components.quality.drift import champion_of
from components.settings import load_part, load_stage
from components.sources.sets import sets_of
from components.tasks.config import EvaluateConfig
from components.tasks.features import Features, Volumes, encoder_method, extract
from components.tasks.interface import Kind, Question
from components.tasks.kinds import kind_of, tasks_of
from components.tasks.scores import DIGITS, ENCODER, RANDOM, Score

RIVAL = "champion"
# A head stands beside untrained encoders, of which there are none here; what is trained would be trained again.
LEFT_OUT = {"serve": False, "few_shot": None, "fine_tune": None, "attentive": None}
NAME = "rival.json"
log = logging.getLogger(__name__)


def run(line: str) -> None:
    """Write ``data/<line>/rival/rival.json``: ``champion``, its digest, and ``tasks``, as :func:`compared`; none where
    there is no champion, or one that was kept without its encoder.

    Raises:
        UserError: the champion's encoder is missing, or not the one that was promoted.
    """
    layout, champion = Layout.of(line), champion_of(data_dir(line, "cohort").parent)
    found: dict[str, Any] = {"champion": champion and champion["bundle"], "tasks": {}}
    if champion is not None and champion.get("encoder"):
        config = load_stage(EvaluateConfig, line, "evaluate")
        folder = Path("infra") / "champions" / f"{line}.encoder"
        found["tasks"] = compared(line, layout, config, champion_encoder(folder, champion["encoder"], config.device))
    write_json(layout.root / "rival" / NAME, found)


def champion_encoder(folder: Path, digests: Mapping[str, str], device: str) -> Embedder:
    """The champion's encoder, as it was promoted.

    Args:
        folder: where it lies.
        digests: file to SHA-256, of the champion's file.
        device: where it runs.

    Raises:
        UserError: a file is missing or another one.
    """
    for name, digest in sorted(digests.items()):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: missing; `dvc pull {folder}.dvc` or `dvc checkout {folder}.dvc` brings it"
            )
        if sha256_file(folder / name) != digest:
            raise UserError(f"{folder / name}: not the champion's; `dvc checkout --force {folder}.dvc` brings it back")
    return Embedder.load(folder, device)


def compared(line: str, layout: Layout, config: EvaluateConfig, champion: Embedder) -> dict[str, Any]:
    """Task to figure to ``value``, ``champion`` (its figure on the same cases), ``gain`` (by how much the new encoder
    is better, whichever way is better) and ``gain_low``, ``gain_high``, its 95 % limits over patients.

    Kinds whose cases have no places are left out: they train, and the champion's training would have to be made again.
    """
    places = read_places(layout.cases)
    found: dict[str, Any] = {}
    volumes = Volumes(config, load_part(GridConfig, line, "preprocess"), champion.config.input.size_vox)
    theirs = extract(places, {RIVAL: encoder_method(champion)}, volumes, champion.config.input.size_vox)
    ours = Features.read(places, layout.features, layout.untrained)
    beside = f"{RANDOM}_{config.random_seeds[0]}"  # kinds draw it beside the encoder
    kept = {name: ours.by_method[name] for name in (ENCODER, beside)}
    features = Features(ours.places, kept | {RIVAL: theirs.by_method[RIVAL]})
    for name, task in tasks_of(line, sets_of(line)).items():
        kind, rows = kind_of(task), read_cases(layout.cases, name).table
        if rows.empty or not kind.placed:
            continue
        left_out = {key: off for key, off in LEFT_OUT.items() if key in type(task).model_fields}
        task = task.model_copy(update=left_out)
        encoders = {
            RIVAL: lambda: champion,
            ENCODER: lambda: Embedder.load(layout.features / "encoder", config.device),
            beside: untrained_encoders(described(layout.features / "encoder"), config)[beside],
        }
        with threadpool_limits(1):
            outcome = kind.judge(Question(line, name, task, rows, config, features, encoders, volumes))
        found |= _pairs(outcome.scores, kind)
    return found


def _pairs(scores: Sequence[Score], kind: Kind) -> dict[str, Any]:
    of = {(score.task, score.figure, score.method): score for score in scores}
    found: dict[str, Any] = {}
    for (task, figure, method), score in of.items():
        other = of.get((task, figure, RIVAL))
        if method != ENCODER or other is None:
            continue
        sign = -1.0 if kind.figures[figure].lower_is_better else 1.0
        gain = paired(sign * score.replicates, sign * other.replicates, score.sample)
        low, high = gain.interval()
        numbers = {
            "value": score.value,
            "champion": other.value,
            "gain": gain.value,
            "gain_low": low,
            "gain_high": high,
        }
        found.setdefault(task, {})[figure] = {name: round(number, DIGITS) for name, number in numbers.items()}
    return found


if __name__ == "__main__":
    run_stage("rival", "Judge the champion's encoder at the same tasks, case by case.", run)
