"""Features of places: each volume is opened once, and shown once to all encoders of one input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pretrain_project import block, volume

from components.ct.store import Volume
from components.models.embed import EmbedConfig, Embedder, untrained_embedder
from components.settings import parse
from components.tasks.features import Method, encoder_method, extract, place_of

ROOT = Path(__file__).resolve().parents[2]


class Opened:
    """Stands for the stored volumes of a line."""

    def __init__(self, line: str) -> None:
        self._line, self.count = line, 0

    def open(self, name: str) -> Volume:
        self.count += 1
        return volume(self._line, int(name))


def embedders(line: str, seeds: range) -> dict[str, Embedder]:
    content = block(line)
    config = parse(EmbedConfig, {"encoder": content["encoder"], "input": content["input"]}, "embed")
    return {f"random_{seed}": untrained_embedder(config, seed) for seed in seeds}


def whole(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"volume": names, "x": np.nan, "y": np.nan, "z": np.nan})


@pytest.mark.parametrize(("line", "shows"), [("wholebody", "_covering"), ("head", "_resized")])
def test_encoders_of_one_input_are_shown_a_volume_once(line: str, shows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders, shown = embedders(line, range(4)), list[str]()
    expected = {name: [of.embed_volume(volume(line, number)) for number in (0, 2)] for name, of in encoders.items()}
    real = getattr(Embedder, shows)
    monkeypatch.setattr(Embedder, shows, lambda self, volume: shown.append(line) or real(self, volume))
    methods = {name: encoder_method(of) for name, of in encoders.items()}
    methods["plain"] = Method(lambda crops: crops.hu, lambda volume: volume.hu.mean(keepdims=True).ravel())
    opened = Opened(line)
    places = whole(["0", "2"])
    found = extract(places, methods, opened, (8, 8, 8))  # type: ignore[arg-type]
    assert (len(shown), opened.count) == (2, 2)
    for name, vectors in expected.items():
        assert np.array_equal(found.by_method[name], np.stack(vectors)), name
    assert len(found.places) == len(set(place_of(places))) == 2


def test_encoders_of_other_inputs_are_shown_their_own() -> None:
    ours, theirs = embedders("head", range(1))["random_0"], embedders("head", range(1))["random_0"]
    windows = ((500.0, 100.0), *theirs.config.input.windows[1:])
    seen = theirs.config.input.model_copy(update={"windows": windows})
    theirs = Embedder(theirs.encoder, theirs.config.model_copy(update={"input": seen}), "cpu")
    methods = {"ours": encoder_method(ours), "theirs": encoder_method(theirs)}
    found = extract(whole(["0"]), methods, Opened("head"), (8, 8, 8))  # type: ignore[arg-type]
    for name, of in (("ours", ours), ("theirs", theirs)):
        assert np.array_equal(found.by_method[name][0], of.embed_volume(volume("head", 0)))
    assert not np.array_equal(found.by_method["ours"], found.by_method["theirs"])


@pytest.mark.parametrize("module", ["components.evaluate.task", "components.evaluate.untrained", "components.bundle"])
def test_a_stage_that_builds_no_convolutional_encoder_does_without_monai(module: str) -> None:
    """It takes seconds to import, in each of a release's stages."""
    code = f"import sys, {module}; sys.exit('monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
