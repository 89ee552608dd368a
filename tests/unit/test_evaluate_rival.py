"""The champion's encoder is asked again, on the cases of now."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import UserError
from components.evaluate.layout import Layout
from components.evaluate.rival import champion_encoder, compared
from components.evaluate.stage import evaluate
from components.files import read_json, sha256_file
from components.models.embed import DESCRIPTION, WEIGHTS, untrained_embedder
from components.tasks.cluster import ClusterConfig
from components.tasks.table import Inputs
from tests.unit.test_evaluate_stage import TASKS, tiny_embedder, tiny_line

ASKED = {name: TASKS[name] for name in ("organs", "stability")}
ASKED |= {"clusters": ClusterConfig(kind="cluster", starts=2)}


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Inputs, Layout]:
    inputs, layout = tiny_line(tmp_path), Layout(tmp_path / "out")
    evaluate(inputs, ASKED, tiny_embedder(), layout)
    monkeypatch.setattr("components.evaluate.rival.tasks_of", lambda *_: ASKED)
    monkeypatch.setattr("components.evaluate.rival.sets_of", lambda _: {})
    monkeypatch.setattr("components.evaluate.rival.load_part", lambda *_: inputs.preprocess)
    return inputs, layout


def test_the_same_encoder_gains_nothing_at_any_task(line: tuple[Inputs, Layout]) -> None:
    inputs, layout = line
    found = compared("wholebody", layout, inputs.config, tiny_embedder())
    metrics = read_json(layout.evaluate / "metrics.json")["tasks"]
    assert found.keys() == metrics.keys()
    for task, figures in found.items():
        assert figures.keys() == metrics[task].keys()
        for figure, numbers in figures.items():
            assert numbers["value"] == numbers["champion"] == metrics[task][figure]["value"]
            assert (numbers["gain"], numbers["gain_low"], numbers["gain_high"]) == (0.0, 0.0, 0.0)


def test_another_encoder_is_judged_by_its_own_features(line: tuple[Inputs, Layout]) -> None:
    """As if it had been evaluated by itself."""
    inputs, layout = line
    other = untrained_embedder(tiny_embedder().config, 1)  # one of the evaluation's own untrained ones
    found = compared("wholebody", layout, inputs.config, other)["organs"]["retrieval_map"]
    table = (layout.evaluate / "plots" / "figures.csv").read_text()
    (row,) = [text for text in table.splitlines() if text.startswith("organs,random_1,retrieval_map,")]
    assert found["champion"] == float(row.split(",")[3])
    assert found["gain"] == pytest.approx(found["value"] - found["champion"], abs=2e-6)
    assert found["gain_low"] < found["gain"] < found["gain_high"]


def test_a_champion_that_is_missing_or_another_is_one_line(tmp_path: Path) -> None:
    tiny_embedder().save(tmp_path)
    digests = {name: sha256_file(tmp_path / name) for name in (WEIGHTS, DESCRIPTION)}
    assert champion_encoder(tmp_path, digests, "cpu").dim == tiny_embedder().dim
    untrained_embedder(tiny_embedder().config, 3).save(tmp_path)
    with pytest.raises(UserError, match=f"{WEIGHTS}: not the champion's; `dvc checkout --force .*.dvc` brings it back"):
        champion_encoder(tmp_path, digests, "cpu")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"{WEIGHTS}: missing; `dvc pull .*.dvc` brings it"):
        champion_encoder(tmp_path, digests, "cpu")
