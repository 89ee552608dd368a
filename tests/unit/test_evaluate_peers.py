"""Encoders of others beside ours: where they come from, and what is said where they cannot stand there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_tasks_scores import config, features_of, table_of

from components.ct.grid import GridConfig
from components.ct.store import Int16Array, Volume
from components.errors import UserError
from components.evaluate import task
from components.evaluate.cases import Asked, write_cases
from components.evaluate.comparisons import other_models
from components.evaluate.layout import Layout, read_places
from components.evaluate.peers import PeersConfig, beside_peers, peer_methods, peers_of
from components.evaluate.stage import evaluate
from components.evaluate.untrained import write_untrained
from components.figures.resampling import paired
from components.files import sha256_file
from components.models.embed import EmbedConfig, untrained_embedder
from components.settings import ParamsError, parse
from components.tasks import locate
from components.tasks.features import Volumes
from components.tasks.judging import score_task
from tests.unit.task_inputs import GRID, evaluation
from tests.unit.test_evaluate_stage import TASKS, tiny_embedder, tiny_line
from tests.unit.test_tasks_locate import EMBED as PLACES_EMBED
from tests.unit.test_tasks_locate import TASK as PLACES
from tests.unit.test_tasks_locate import line as places_line


class Means:
    """A peer of a user's own: the mean of a larger crop than ours."""

    size_vox = (10, 20, 20)

    def embed_crops(self, hu: Int16Array) -> Any:
        assert hu.shape[1:] == self.size_vox
        return hu.mean(axis=(1, 2, 3), dtype=np.float64)[:, None]

    def embed_volume(self, volume: Any) -> Any:
        return np.zeros(1)


def peers(**encoders: Any) -> PeersConfig:
    return parse(PeersConfig, {"encoders": encoders}, "wholebody.peers")


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    untrained_embedder(tiny_embedder().config, 77).save(tmp_path / "release")
    monkeypatch.setenv("CTFOUNDRY_ROOT_PEER_OTHER", str(tmp_path / "release"))
    monkeypatch.setitem(sys.modules, "site_encoders", type(sys)("site_encoders"))
    sys.modules["site_encoders"].means = Means  # type: ignore[attr-defined]
    sys.modules["site_encoders"].none = object  # type: ignore[attr-defined]
    sys.modules["site_encoders"].broken = lambda: {}["weights"]  # type: ignore[attr-defined]
    return tmp_path / "release"


def test_peers_stand_beside_ours_with_a_paired_difference(release: Path, tmp_path: Path) -> None:
    inputs, layout, embedder = tiny_line(tmp_path), Layout(tmp_path / "out"), tiny_embedder()
    evaluate(inputs, TASKS, embedder, layout)
    asked = peers(
        other={"release": sha256_file(release / "encoder.safetensors")}, means={"function": "site_encoders:means"}
    )
    methods = peer_methods("wholebody", asked, embedder.config.input, "cpu")
    volumes = Volumes(inputs.config, inputs.preprocess, embedder.config.input.size_vox)
    places = read_places(layout.cases)
    write_untrained(layout.untrained, places, embedder.config, inputs.config, volumes, methods)
    assert np.load(layout.untrained / "peer_means.npy").shape == (len(places), 1)
    theirs = np.load(layout.untrained / "peer_other.npy")
    assert theirs.shape == np.load(layout.features / "encoder.npy").shape


def test_a_peer_is_made_only_where_it_is_asked_for(release: Path) -> None:
    """A task whose features lie there already needs no peer's weights, and no package of the user's."""
    gone = peers(gone={"release": "0" * 64}, nobody={"function": "no_such_module:x"})
    made = peers_of("wholebody", gone, tiny_embedder().config.input, "cpu")
    assert list(made) == ["peer_gone", "peer_nobody"]
    for name in made:
        with pytest.raises(UserError):
            made[name]()


def test_a_release_has_levels_and_a_function_has_not(release: Path) -> None:
    asked = peers(
        other={"release": sha256_file(release / "encoder.safetensors")}, means={"function": "site_encoders:means"}
    )
    made = peers_of("wholebody", asked, tiny_embedder().config.input, "cpu")
    other, means = made["peer_other"](), made["peer_means"]()
    assert other.embedder is not None
    assert other.size_vox == other.embedder.config.input.size_vox
    assert means.embedder is None
    assert means.embed_crops(np.full((3, *means.size_vox), 7, dtype=np.int16)).tolist() == [[7.0]] * 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size_vox": 16}, "size_vox 16 is not allowed: three numbers of voxels, 1 or more each"),
        ({"size_vox": (8, 16, 0)}, "size_vox (8, 16, 0) is not allowed"),
        ({"embed_crops": lambda hu: np.zeros(4)}, "gave float64 (4,) of 2 crops; allowed: finite numbers, (2, dim"),
        ({"embed_crops": lambda hu: np.zeros((1, 4))}, "gave float64 (1, 4) of 2 crops"),
        ({"embed_crops": lambda hu: np.full((2, 4), np.nan)}, "gave float64 (2, 4) of 2 crops"),
        ({"embed_crops": lambda hu: [["a"], ["b"]]}, "embed_crops gave <U1 (2, 1) of 2 crops"),
        ({"embed_crops": lambda hu: 1 / 0}, "embed_crops raised ZeroDivisionError: division by zero"),
        ({"embed_crops": lambda hu: np.zeros((2, hu.max() + 3))}, "(2, 4) of 2 crops; allowed: finite numbers, (2, 3)"),
        ({"embed_volume": None}, "embed_volume raised TypeError: 'NoneType' object is not callable"),
        ({"embed_volume": lambda of: np.zeros((1, 3))}, "embed_volume gave float64 (1, 3) of a scan; allowed: finite"),
        ({"embed_volume": lambda of: 0.5}, "gave float64 () of a scan; allowed: finite numbers, (3,)"),
        ({"embed_volume": lambda of: np.full(3, np.inf)}, "embed_volume gave float64 (3,) of a scan"),
    ],
)
def test_a_function_that_returns_something_else_is_one_line(
    release: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"embed_crops": lambda hu: np.zeros((2, 3)), "embed_volume": lambda of: np.zeros(3)}
    parts = {"size_vox": (8, 16, 16)} | given | wrong
    monkeypatch.setattr(sys.modules["site_encoders"], "wrong", lambda: SimpleNamespace(**parts), raising=False)
    make = peers_of("wholebody", peers(wrong={"function": "site_encoders:wrong"}), tiny_embedder().config.input, "cpu")

    def ask() -> None:
        peer = make["peer_wrong"]()
        for value in (0, 1):
            peer.embed_crops(np.full((2, 8, 16, 16), value, dtype=np.int16))
        peer.embed_volume(Volume(np.zeros((1, 1, 1), dtype=np.int16), np.eye(4)))

    with pytest.raises(UserError) as caught:
        ask()
    assert str(caught.value).startswith("wholebody.peers.encoders.wrong.function: ")
    assert said in str(caught.value)


def test_a_task_of_places_is_judged_beside_the_peers_of_the_parameters(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage ``task`` itself, of kind ``locate``: the peers of params.yaml stand in its metrics."""
    untrained_embedder(parse(EmbedConfig, PLACES_EMBED, "t"), 7).save(tmp_path / "data/wholebody/features/encoder")
    layout = Layout(tmp_path / "data/wholebody")
    built = locate.cases("places", PLACES, places_line(tmp_path))
    write_cases(layout.cases, {"places": Asked(PLACES, built)})
    blocks = {"evaluate": evaluation(), "peers": peers(means={"function": "site_encoders:means"})}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(task, "tasks_of", lambda line, sets: {"places": PLACES})
    monkeypatch.setattr(task, "sets_of", lambda line: {})
    monkeypatch.setattr(task, "load_stage", lambda _, line, block: blocks[block])
    monkeypatch.setattr(task, "load_part", lambda *_: parse(GridConfig, GRID, "t"))
    task.run("wholebody", "places")
    metrics = json.loads((layout.task("places") / "metrics.json").read_text())
    assert set(metrics["peers"]["places"]["means"]) == {"inside", "distance_mm"}
    told = {"tasks": metrics["tasks"], "peers": metrics["peers"]}
    ((part, title, model, *_, source),) = other_models(told, locate.FIGURES, ["places"], [])
    assert (part, title, model, source) == ("places", locate.FIGURES["inside"].title, "Peer means", "judged here")
    blocks["peers"] = peers()
    task.run("wholebody", "places")
    assert "peers" not in json.loads((layout.task("places") / "metrics.json").read_text())


def test_the_difference_is_the_paired_one() -> None:
    table = table_of(160)
    features = features_of(table, {"encoder": 1.5, "peer_other": 0.2, "random_1": 0.0}).by_method
    scores, _ = score_task("organs", table, features, config())
    by = {(score.method, score.figure): score for score in scores}
    found = beside_peers(scores)["organs"]["other"]["linear_auc"]
    ours, peer = by["encoder", "linear_auc"], by["peer_other", "linear_auc"]
    estimate = paired(ours.replicates, peer.replicates, peer.sample)
    assert found["value"] == pytest.approx(peer.value, abs=1e-6)
    assert [found["difference"], found["low"], found["high"]] == pytest.approx(
        [estimate.value, *estimate.interval()], abs=1e-6
    )
    assert found["low"] > 0


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ({"release": "0" * 64}, "other.release: encoder.safetensors has"),
        ({"function": "no_such_module:x"}, "other.function: 'no_such_module:x' cannot be imported"),
        ({"function": "site_encoders:nothing"}, "other.function: 'site_encoders:nothing' cannot be imported"),
        ({"function": "site_encoders:none"}, "returns has no size_vox"),
        ({"function": "site_encoders:broken"}, "other.function: 'site_encoders:broken' raised KeyError: 'weights'"),
    ],
)
def test_a_peer_that_is_none_is_one_line(release: Path, peer: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        peer_methods("wholebody", peers(other=peer), tiny_embedder().config.input, "cpu")
    assert said in str(caught.value)


def test_a_peer_of_another_grid_is_refused(release: Path) -> None:
    description = json.loads((release / "encoder.json").read_text())
    description["input"]["spacing_mm"] = [1.0, 1.0, 1.0]
    (release / "encoder.json").write_text(json.dumps(description))
    asked = peers(other={"release": sha256_file(release / "encoder.safetensors")})
    with pytest.raises(UserError, match=r"it has spacing_mm \(1\.0, 1\.0, 1\.0\), the line"):
        peer_methods("wholebody", asked, tiny_embedder().config.input, "cpu")


@pytest.mark.parametrize("peer", [{}, {"release": "0" * 64, "function": "a:b"}, {"function": "a.b"}])
def test_a_peer_is_either_a_release_or_a_function(peer: dict[str, str]) -> None:
    with pytest.raises(ParamsError):
        peers(other=peer)
