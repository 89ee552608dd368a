"""Encoders of others beside ours: where they come from, and what is said where they cannot stand there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tasks_scores import config, features_of, table_of

from components.ct.store import Int16Array
from components.errors import UserError
from components.evaluate.layout import Layout, read_places
from components.evaluate.peers import PeersConfig, beside_peers, peer_methods
from components.evaluate.stage import evaluate
from components.evaluate.untrained import write_untrained
from components.figures.resampling import paired
from components.files import sha256_file
from components.models.embed import untrained_embedder
from components.settings import ParamsError, parse
from components.tasks.features import Volumes
from components.tasks.judging import score_task
from tests.unit.test_evaluate_stage import TASKS, tiny_embedder, tiny_line


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
