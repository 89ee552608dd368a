"""A head is read as it was written, answers as scikit-learn does, and is refused where it does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from components.errors import UserError
from components.files import read_json, sha256_file, sha256_tree, write_json
from components.models.heads import Head, HeadDescription, Linear, calibrated, load_heads
from components.settings import ParamsError, parse
from components.tasks.probes import fit_linear
from tests.unit.test_evaluate_stage import tiny_embedder

CLASSES = ("a", "b", "c")


def description(**changes: Any) -> HeadDescription:
    content = {
        "format": 1, "kind": "classify", "task": "organs", "part": "organs", "classes": list(CLASSES), "positive": None,
        "sees": "point", "dim": 4, "encoder": "e" * 64, "temperature": 1.5, "priors": [0.5, 0.3, 0.2],
        "operating_point": None, "figures": {"linear_auc": {"value": 0.9}}, "counts": {}, "limits": ["None."],
    }  # fmt: skip
    return parse(HeadDescription, content | changes, "t")


def linear(classes: int = 3, dim: int = 4) -> Linear:
    rng = np.random.default_rng(0)
    return Linear(
        rng.normal(size=dim), rng.uniform(1, 2, dim), rng.normal(size=(classes, dim)), rng.normal(size=classes)
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An encoder of dimension 8 and a head of it."""
    tiny_embedder().save(tmp_path)
    assert tiny_embedder().dim == 8
    encoder = sha256_file(tmp_path / "encoder.safetensors")
    Head(description(dim=8, encoder=encoder), linear(dim=8)).write(tmp_path / "heads" / "organs")
    return tmp_path


def test_what_is_read_answers_as_what_was_written_and_equal_heads_are_equal_bytes(tmp_path: Path) -> None:
    head = Head(description(), linear())
    head.write(tmp_path / "one")
    head.write(tmp_path / "two")
    assert sha256_tree(tmp_path / "one") == sha256_tree(tmp_path / "two")
    again, seen = Head.read(tmp_path / "one"), np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    assert again.description == head.description
    assert np.array_equal(again.probabilities(seen), head.probabilities(seen))
    assert again.probabilities(seen).sum(axis=1) == pytest.approx(1)


def test_probabilities_are_softmax_of_tempered_logits_at_the_priors() -> None:
    logits, priors = np.random.default_rng(2).normal(size=(6, 3)), np.array([0.5, 0.3, 0.2])
    expected = softmax(logits / 1.5, axis=1) * priors
    expected /= expected.sum(axis=1, keepdims=True)
    assert calibrated(logits, 1.5, priors) == pytest.approx(expected, abs=1e-12)
    assert calibrated(logits, 1e9, priors) == pytest.approx(np.tile(priors, (6, 1))), "nothing is known"
    assert np.isfinite(calibrated(1e5 * logits, 0.01, priors)).all()


@pytest.mark.parametrize("classes", [("a", "b"), CLASSES])
def test_the_probe_is_scikit_learns(classes: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    labels = np.asarray(classes)[np.arange(60) % len(classes)]
    train, seen = rng.normal(size=(60, 5)), rng.normal(size=(7, 5))
    train[:, 2] = 4.0  # says nothing
    train[:, 0] += labels == "b"
    varying = [0, 1, 3, 4]
    mean, scale = train[:, varying].mean(axis=0), train[:, varying].std(axis=0) * 2  # the root of four features
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000, tol=1e-6)
    model.fit((train[:, varying] - mean) / scale, labels)
    expected = model.predict_proba((seen[:, varying] - mean) / scale)
    assert fit_linear(train, labels, classes, 10.0).probabilities(seen) == pytest.approx(expected, abs=1e-9)


def test_features_that_are_put_together_are_scaled_part_by_part() -> None:
    rng = np.random.default_rng(4)
    labels = np.array(["a", "b"])[np.arange(40) % 2]
    train = rng.normal(size=(40, 11))
    found = fit_linear(train, labels, ("a", "b"), 10.0, blocks=(2, 9))
    assert found.scale == pytest.approx(train.std(axis=0) * np.sqrt([2] * 2 + [9] * 9))


def test_a_release_without_heads_has_none(tmp_path: Path) -> None:
    tiny_embedder().save(tmp_path)
    assert load_heads(tmp_path) == {}


def test_the_heads_of_a_release_are_found_by_their_part(bundle: Path) -> None:
    encoder = sha256_file(bundle / "encoder.safetensors")
    of_part = description(dim=8, encoder=encoder, task="findings", part="findings/ich", sees="scan")
    Head(of_part, linear(dim=8)).write(bundle / "heads" / "findings" / "ich")
    assert list(load_heads(bundle)) == ["findings/ich", "organs"]


def test_a_head_that_does_not_fit_is_one_line(bundle: Path) -> None:
    folder = bundle / "heads" / "organs"
    kept = shutil.copytree(folder, bundle / "kept")

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as raised:
            load_heads(bundle)
        assert "\n" not in str(raised.value)
        shutil.rmtree(bundle / "heads")
        shutil.copytree(kept, folder)

    told = read_json(folder / "head.json")
    write_json(folder / "head.json", told | {"encoder": "0" * 64})
    refused(r"head organs: was fitted on encoder 000000000000, but the release holds")
    write_json(folder / "head.json", told | {"dim": 9})
    refused(r"head .*organs: head.safetensors holds .*\(3, 8\).* but head.json tells of .*\(3, 9\)")
    (folder / "head.safetensors").write_bytes(b"not")
    refused(r"head .*organs: head.safetensors is not readable as safetensors")
    (folder / "head.safetensors").unlink()
    refused(r"head .*organs: head.safetensors is missing")
    (folder / "head.json").unlink()
    refused(r"head .*organs: head.json is missing")
    write_json(folder / "head.json", told | {"part": "lesions"})
    refused(r"head organs: its description is of lesions")
    shutil.move(folder, bundle / "heads" / "other")
    refused(r"head other: its description is of organs")


def test_weights_of_pickle_are_no_head(bundle: Path) -> None:
    safetensors.numpy.save_file({"weight": np.zeros((3, 8))}, bundle / "heads" / "organs" / "head.safetensors")
    with pytest.raises(UserError, match=r"holds \{'weight': \(3, 8\)\}"):
        load_heads(bundle)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"priors": [0.5, 0.5]}, "2 priors are not allowed: one for each of 3 classes"),
        ({"positive": "d"}, "positive 'd' is not allowed: one of a, b, c"),
        ({"format": 2}, "format: 2 is not allowed"),
        ({"temperature": 0.0}, "temperature: 0.0 is not allowed"),
        ({"threshold": 0.5}, "threshold: unknown key"),
    ],
)
def test_a_description_that_contradicts_itself_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ParamsError, match=said):
        description(**changes)
