"""Kind ``segment``: peers learn decoders of their own; those that have no levels for one are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.evaluate.peers import beside_peers
from components.models.embed import EmbedConfig, untrained_embedder
from components.settings import parse
from components.tasks.features import Peer
from components.tasks.interface import Outcome, Question
from components.tasks.segment import KIND, judge
from components.tasks.segment_peers import with_levels
from tests.unit.test_tasks_segment import DECODER, EMBED, inputs, question, task

VECTORS = Peer((8, 32, 32), lambda hu: np.zeros((len(hu), 1)), lambda volume: np.zeros(1))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Question, Outcome]:
    asked = question(inputs(tmp_path_factory.mktemp("line")), task())
    return asked, judge(asked)


def peer(changes: dict[str, object], seed: int) -> Peer:
    """Another release, whose encoder or input differs from ours by ``changes``."""
    described = EMBED.model_dump(mode="json")
    for key, value in changes.items():
        described["input" if key == "windows" else "encoder"][key] = value
    embedder = untrained_embedder(parse(EmbedConfig, described, ""), seed)
    return Peer(embedder.config.input.size_vox, embedder.embed_crops, embedder.embed_volume, embedder)


def test_peers_learn_a_decoder_of_their_own_and_leave_the_others_as_they_were(
    judged: tuple[Question, Outcome],
) -> None:
    """One is our encoder again, so it must reach the very same; one has another window and a level less."""
    asked, alone = judged
    made = {
        "peer_ours": peer({}, 9),
        "peer_other": peer({"windows": [[0, 2000]], "blocks_down": [1, 1]}, 3),
        "peer_vectors": VECTORS,
    }
    peers = {name: lambda of=of: of for name, of in made.items()}
    outcome = judge(replace(asked, peers=peers))
    values = {(score.task, score.method, score.figure): score.value for score in outcome.scores}
    assert {method for _, method, _ in values} == {"encoder", "random_1", "random_2", "peer_ours", "peer_other"}
    for figure in KIND.figures:
        assert values["organs", "peer_ours", figure] == values["organs", "encoder", figure]
    assert values["organs", "peer_other", "dice"] != values["organs", "encoder", "dice"]
    assert values["organs", "peer_other", "dice"] > 0.6, "its decoder stands on its own levels, of its own windows"
    others = outcome.cases[~outcome.cases["method"].str.startswith("peer_")].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, alone.cases)
    told = outcome.remarks["organs"]
    assert "eer" not in alone.remarks["organs"]
    assert "Peers with a decoder of their own, trained as the encoder's: other, ours." in told
    assert told.endswith("Without peer vectors: a function returns vectors, and no levels.")
    beside = beside_peers(outcome.scores)
    assert set(beside) == {"organs", "organs/scans_1"}
    assert beside["organs"]["ours"]["dice"]["difference"] == 0.0
    assert set(beside["organs"]["other"]) == set(KIND.figures)


def test_a_peer_whose_levels_do_not_reach_the_decoder_is_left_out_and_said() -> None:
    config = task(decoder=DECODER | {"finest": 2}).decoder
    scans = EMBED.input.model_dump(mode="json")
    vit = {"kind": "vit", "patch_vox": 8, "dim": 12, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "registers": 0,
           "position_waves": "grid", "pooling": "mean"}  # fmt: skip
    described = parse(EmbedConfig, {"encoder": vit, "input": scans}, "")
    embedder = untrained_embedder(described, 1)
    peers = {
        "peer_vit": lambda: Peer((8, 32, 32), embedder.embed_crops, embedder.embed_volume, embedder),
        "peer_small": lambda: peer({"blocks_down": [1, 1]}, 1),
        "peer_deep": lambda: peer({}, 1),
    }
    found, told = with_levels(peers, config)
    assert list(found) == ["peer_deep"]
    assert told == (
        "Without peer small: decoder.finest 2 is not allowed: below 2, the encoder's levels. "
        "Without peer vit: encoder 'vit' is not allowed: segres."
    )
    assert with_levels({}, config) == ({}, "")


def test_a_peer_is_fine_tuned_as_the_encoder_and_not_trained_from_scratch(tmp_path: Path) -> None:
    tuned = {"steps": 4, "encoder_rate": 1e-4, "untrained_rate": 1e-2}
    asked = question(inputs(tmp_path, train=1, test=2), task(scans=[1], fine_tune=tuned, serve=False))
    outcome = judge(replace(asked, peers={"peer_ours": lambda: peer({}, 9)}))
    values = {(score.task, score.method): score.value for score in outcome.scores if score.figure == "dice"}
    assert values["organs/fine_tuned", "peer_ours"] == values["organs/fine_tuned", "encoder"]
