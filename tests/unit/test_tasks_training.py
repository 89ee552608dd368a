"""What a classify task trains: it begins at the frozen probe, sees training cases alone, and comes out the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from components.ct.grid import GridConfig
from components.ct.store import Volume, write_volume
from components.models.embed import EmbedConfig, Embedder, fixed_threads, untrained_embedder
from components.settings import ParamsError, parse
from components.tasks import attentive, fine_tune
from components.tasks.asked import Asked, Loss, Seen, batches, generator_of, seen_by
from components.tasks.classify import KIND, ClassifyConfig
from components.tasks.features import Volumes
from components.tasks.few_shot import drawn
from components.tasks.fine_tune import Rates, depth_of, share_of_rate
from components.tasks.interface import Question
from components.tasks.judging import Part
from components.tasks.kinds import of_points
from components.tasks.probes import fit_linear
from components.tasks.scores import task_metrics
from components.tasks.trained import AttentiveConfig, FineTuneConfig
from components.tasks.training import _Run, trained
from tests.unit.task_inputs import GRID, evaluation, question

SIDE, PATIENTS = 8, 40
EMBED: dict[str, Any] = {
    "encoder": {
        "kind": "vit", "patch_vox": 4, "dim": 12, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "registers": 0,
        "position_waves": "grid", "pooling": "class_mean",
    },
    "input": {
        "sees": "scan", "orientation": "SPL", "spacing_mm": [3.0, 1.0, 1.0], "size_vox": [SIDE] * 3,
        "windows": [[0.0, 200.0]],
    },
}  # fmt: skip
TUNE: dict[str, Any] = {
    "steps": 40, "few_shot_steps": 4, "few_shot_draws": 2, "batch": 8, "learning_rate": 0.003,
    "scratch_learning_rate": 0.003, "head_learning_rate": 0.003, "layer_decay": 0.8, "weight_decay": 0.01,
    "flip_probability": 0.5, "scratch": 2,
}  # fmt: skip
ATTEND: dict[str, Any] = {
    "queries": 2, "steps": 150, "batch": 20, "learning_rate": 0.03, "weight_decay": 0.01, "untrained": 2,
}  # fmt: skip
AFFINE = np.array([[0, 0, -1.0, 20], [0, -1.0, 0, 20], [3.0, 0, 0, 0], [0, 0, 0, 1]])
ASKED: dict[str, Any] = {"kind": "classify", "set": "site", "label": "spot", "serve": True, "specificity": 0.9}


def embedder(seed: int = 3) -> Embedder:
    return untrained_embedder(parse(EmbedConfig, EMBED, "t"), seed)


def tuning(**changed: Any) -> FineTuneConfig:
    return parse(FineTuneConfig, TUNE | changed, "t")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with fixed_threads(1), threadpool_limits(1):  # as stage task
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Scans of noise, of which every other has a bright spot somewhere that leaves their mean as it is."""
    folder, rng, rows = tmp_path_factory.mktemp("scans"), np.random.default_rng(0), []
    for number in range(PATIENTS):
        hu, present = rng.normal(0, 10, (SIDE,) * 3), number % 2 == 1
        if present:
            at = 4 * rng.integers(0, 2, 3)
            hu[tuple(slice(start, start + 4) for start in at)] += 60
            hu -= 60 / 8
        write_volume(folder / f"s{number:02d}.b2nd", Volume(hu.astype(np.int16), AFFINE), {})
        split = "train" if number % 4 < 2 else "test"
        label = "present" if present else "absent"
        rows.append((f"c{number:02d}", f"p{number:02d}", str(folder / f"s{number:02d}.b2nd"), label, split))
    found = pd.DataFrame(rows, columns=["case", "patient", "volume", "label", "split"])
    return found.assign(task="spot", x=np.nan, y=np.nan, z=np.nan, diameter_mm=np.nan)


@pytest.fixture(scope="module")
def volumes() -> Volumes:
    return Volumes(evaluation(), parse(GridConfig, GRID, "t"), (SIDE, SIDE, SIDE))


@pytest.fixture(scope="module")
def seen(table: pd.DataFrame, volumes: Volumes) -> Iterator[Seen]:
    with seen_by(embedder(), table, volumes) as found:
        yield found


@pytest.fixture(scope="module")
def part(table: pd.DataFrame) -> Part:
    return Part.of("spot", table, evaluation(), 0.9)


def vectors(of: Embedder, seen: Seen) -> np.ndarray[Any, np.dtype[np.float64]]:
    with torch.inference_mode():
        return np.asarray(of.vectors(torch.from_numpy(np.array(seen.given))).double().numpy())


def asked_of(table: pd.DataFrame, volumes: Volumes, seen: Seen, task: Any, **config: Any) -> Question:
    ours = embedder(3)  # one for all, as an evaluation of a given encoder has it
    encoders = {"encoder": lambda: ours, "random_1": lambda: embedder(1), "random_2": lambda: embedder(2)}
    order = [seen.places[f"{volume} nan nan nan"] for volume in table["volume"]]
    features = {name: vectors(make(), seen)[order] for name, make in encoders.items()}
    plain = {
        name: np.asarray(seen.given)[order].std(axis=(1, 2, 3, 4))[:, None] for name in ("histogram", "hu_statistics")
    }
    given = {"encoders": encoders, "volumes": volumes, "config": evaluation(random_seeds=[1, 2], **config)}
    return question("spot", task, table, features | plain, **given)


def test_what_is_seen_gives_the_vectors_of_evaluation(table: pd.DataFrame, volumes: Volumes, seen: Seen) -> None:
    found = vectors(embedder(), seen)
    for place, row in list(seen.places.items())[:5]:
        expected = embedder().embed_volume(volumes.open(place.split(" ")[0]))
        assert found[row] == pytest.approx(expected, abs=1e-5)


def test_heads_begin_as_the_frozen_probe(seen: Seen, part: Part) -> None:
    encoder = embedder()
    features = vectors(encoder, seen)
    train = Asked.of(part, seen)
    probe = fit_linear(features[train.places], part.labels[~part.test], part.classes, 10.0)
    places = np.arange(len(features))
    (found,) = fine_tune.probabilities(encoder, fine_tune.Heads([probe]), seen, places)
    assert found == pytest.approx(probe.probabilities(features), abs=1e-5)


def tuned_once(seen: Seen, part: Part, **changed: Any) -> tuple[Embedder, np.ndarray[Any, np.dtype[np.float64]]]:
    encoder, config = embedder(), tuning(**changed)
    train = Asked.of(part, seen)
    probe = fit_linear(vectors(encoder, seen)[train.places], part.labels[~part.test], part.classes, 10.0)
    rates = Rates(config.learning_rate, config.head_learning_rate, config.layer_decay)
    heads = fine_tune.tuned(encoder, seen, [train], [probe], rates, config.steps, config, generator_of(1, "t"))
    (found,) = fine_tune.probabilities(encoder, heads, seen, seen.rows(part.rows))
    return encoder, found


def test_training_moves_every_layer_fits_its_cases_and_comes_out_the_same_again(seen: Seen, part: Part) -> None:
    (encoder, found), (again, same) = tuned_once(seen, part, steps=80), tuned_once(seen, part, steps=80)
    before = embedder().encoder.state_dict()
    for name, value in encoder.encoder.state_dict().items():
        assert not torch.equal(value, before[name]), name
        assert torch.equal(value, again.encoder.state_dict()[name]), name
    assert np.array_equal(found, same)
    own = found[np.arange(len(found)), (part.labels == "present").astype(int)]
    assert own[~part.test].mean() > 0.8
    assert not any(parameter.requires_grad for parameter in encoder.encoder.parameters())


def test_test_cases_take_no_part(seen: Seen, part: Part) -> None:
    other = np.array(seen.given)
    tested = seen.rows(part.rows[part.test])
    other[tested] = other[tested[::-1]]
    (one, _), (two, _) = tuned_once(seen, part, steps=5), tuned_once(Seen(seen.places, other), part, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(one.encoder.parameters(), two.encoder.parameters(), strict=True))


def test_lower_layers_learn_slower() -> None:
    names = [name for name, _ in embedder().encoder.named_parameters()]
    assert {depth_of(name) for name in names} == {0, 1, 2, None}
    assert depth_of("patch_embed.weight") == depth_of("class_token") == 0
    assert (depth_of("blocks.1.mlp.0.weight"), depth_of("norm.weight")) == (2, None)
    assert (depth_of("conv_init.weight"), depth_of("layers.3.blocks.0.conv1.weight")) == (0, 4)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    shares = [share_of_rate(step, 100) for step in range(101)]
    assert shares[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert (max(shares), shares[10], shares[55], shares[100]) == pytest.approx((1, 1, 0.5, 0), abs=1e-12)
    assert share_of_rate(0, 1) == 1


def test_the_loss_of_all_places_is_the_balanced_cross_entropy_of_each_part() -> None:
    one = Asked(np.array([0, 2, 5, 7]), np.array([0, 1, 1, 1]), 2)
    two = Asked(np.array([1, 2]), np.array([2, 0]), 3)
    rng, places = np.random.default_rng(0), np.array([0, 1, 2, 5, 7])
    logits = [torch.from_numpy(rng.normal(size=(5, part.count))) for part in (one, two)]
    found = Loss([one, two])(places, logits)
    expected = []
    for part, of in zip((one, two), logits, strict=True):
        shares = of.softmax(dim=1).numpy()[np.searchsorted(places, part.places)]
        weights = compute_sample_weight("balanced", part.classes)
        expected.append(log_loss(part.classes, shares, sample_weight=weights, labels=range(part.count)))
    assert float(found) == pytest.approx(np.mean(expected))


def test_batches_show_every_place_before_any_again() -> None:
    found = np.concatenate(list(batches(np.arange(3, 10), 4, 7, np.random.default_rng(0))))
    assert len(found) == 28
    for first in range(0, 28, 7):
        assert sorted(found[first : first + 7]) == list(range(3, 10))


def test_attention_begins_at_the_mean_and_finds_what_the_mean_does_not_tell() -> None:
    """One token of many says the class, and its channels' mean over tokens says nothing."""
    rng, labels = np.random.default_rng(0), np.arange(80) % 2
    tokens = rng.normal(size=(80, 16, 8)).astype(np.float32)
    for place, label in enumerate(labels):
        tokens[place, rng.integers(16), :2] = 6.0, 6.0 if label else -6.0
        tokens[place, :, 1] -= tokens[place, :, 1].mean()
    asked = Asked(np.arange(40), labels[:40].astype(np.int64), 2)
    config = parse(AttentiveConfig, ATTEND, "t")
    start = attentive.Attentive(iter([tokens]), [2], 1, generator_of(1, "t"))
    with torch.no_grad():
        start.queries.zero_()
        start.weights[0][:] = torch.eye(8)[:2]
        expected = (tokens - tokens.reshape(-1, 8).mean(axis=0)) / tokens.reshape(-1, 8).std(axis=0)
        found = start(torch.from_numpy(tokens))[0].numpy()
    assert found == pytest.approx(expected.mean(axis=1)[:, :2], abs=1e-4)
    cpu = torch.device("cpu")
    models = [attentive.attentive(tokens, [asked], config, generator_of(1, "t"), cpu) for _ in range(2)]
    answers = [attentive.probabilities(model, tokens, np.arange(40, 80), cpu)[0] for model in models]
    assert np.array_equal(*answers)
    assert ((answers[0][:, 1] > 0.5) == labels[40:]).mean() > 0.9
    mean = fit_linear(tokens[:40].mean(axis=1), labels[:40].astype(str), ["0", "1"], 10.0)
    assert ((mean.probabilities(tokens[40:].mean(axis=1))[:, 1] > 0.5) == labels[40:]).mean() < 0.7


def test_a_task_is_fine_tuned_beside_scratch_and_frozen_on_the_same_draws(
    table: pd.DataFrame, volumes: Volumes, seen: Seen, part: Part
) -> None:
    short = {"fine_tune": TUNE | {"steps": 5, "few_shot_steps": 2}, "attentive": ATTEND | {"steps": 10}}
    more = short | {"few_shot": [1, 4], "external": ["other"]}
    task = parse(ClassifyConfig, ASKED | more, "t")
    both = pd.concat([table, table.assign(task="spot/other")])
    asked = asked_of(both, volumes, seen, task)
    outcome = KIND.judge(asked)
    weights = zip(asked.encoders["encoder"]().encoder.parameters(), embedder().encoder.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights), "the released encoder stays as it is"
    figures = task_metrics(outcome.scores, KIND.figures)
    assert figures["spot"] == figures["spot/other"], "the same cases, and one head for both"
    numbers = figures["spot"]["fine_tuned_auc"]
    assert numbers["difference"] == pytest.approx(numbers["value"] - numbers["random"], abs=2e-6)
    assert {"attentive_auc", "fine_tuned_balanced_accuracy"} < set(figures["spot"])
    gains = outcome.tables["fine_tuned"].set_index(["task", "cases_per_class"]).loc["spot"]
    assert gains.loc["all", "fine_tuned"] == numbers["value"]
    assert gains.loc["all", "above_scratch_low"] == numbers["difference_low"]
    few = outcome.tables["few_shot"].query("task == 'spot'").set_index(["method", "cases_per_class"])
    for count in (1, 4):
        row = gains.loc[count]
        assert row["draws"] == few.loc[("fine_tuned", count), "draws"] == 2
        assert row["fine_tuned"] == few.loc[("fine_tuned", count), "value"]
        assert row["above_frozen"] == pytest.approx(row["fine_tuned"] - row["frozen"], abs=2e-6)
        assert row["above_scratch_low"] <= row["above_scratch"] <= row["above_scratch_high"]
    assert drawn(part, 4, 0, evaluation().seed) is not None
    assert f"Fine-tuned, AUC {numbers['value']:.3f}; from scratch {numbers['random']:.3f}" in outcome.remarks["spot"]
    assert set(outcome.heads) == {"spot"}, "the frozen probe's"
    other = {"present": "absent", "absent": "present"}
    blind = both.assign(label=both["label"].where(both["split"] == "train", both["label"].map(other)))
    again = trained(asked, [Part.of(name, rows, asked.config, 0.9) for name, rows in blind.groupby("task")], ["spot"])
    key = ["task", "method", "probe", "case", "of_class"]
    scores = outcome.cases.set_index(key)["score"]
    answered = pd.concat(again.cases).set_index(key)["score"]
    assert len(answered) == 2 * 20 * 6  # parts, test cases, attention and fine-tuning of an encoder and two others
    assert (scores.loc[answered.index] == answered).all(), "test labels take no part, and it comes out the same"


def test_what_was_not_asked_for_is_not_measured_and_no_gate_may_name_it() -> None:
    assert KIND.measured is not None
    plain = parse(ClassifyConfig, ASKED | {"few_shot": None}, "t")
    tuned = parse(ClassifyConfig, ASKED | {"few_shot": [1], "fine_tune": TUNE}, "t")
    assert not {"fine_tuned_auc", "attentive_auc"} & set(KIND.measured(plain))
    assert "fine_tuned_auc" in KIND.measured(tuned)


def test_mistakes_are_told_by_one_line() -> None:
    with pytest.raises(ParamsError, match=r"fine_tune\.few_shot_draws 2 is not allowed with few_shot null") as error:
        parse(ClassifyConfig, ASKED | {"few_shot": None, "fine_tune": TUNE}, "t")
    assert "\n" not in str(error.value)
    task = parse(ClassifyConfig, ASKED | {"few_shot": None, "attentive": ATTEND}, "t")
    (told,) = of_points("line", "crop", {"spot": task})
    assert "line.tasks.spot: fine_tune and attentive are not allowed with line.pretrain.input.sees 'crop'" in told
    assert of_points("line", "scan", {"spot": task}) == []


@pytest.mark.parametrize(("orientation", "axis"), sorted(fine_tune.LEFT_RIGHT.items()))
def test_scans_are_mirrored_from_left_to_right_and_no_other_way(
    orientation: str, axis: int, seen: Seen, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert orientation[axis] in "LR"
    encoder, shown = embedder(), []
    view = encoder.config.input.model_copy(update={"orientation": orientation})
    encoder.config = encoder.config.model_copy(update={"input": view})
    vectors_of = encoder.vectors
    monkeypatch.setattr(encoder, "vectors", lambda given: (shown.append(given), vectors_of(given))[1])
    train = Asked.of(part, seen)
    probe = fit_linear(vectors(embedder(), seen)[train.places], part.labels[~part.test], part.classes, 10.0)
    config = tuning(flip_probability=1.0, steps=1, batch=len(train.places))
    fine_tune.tuned(encoder, seen, [train], [probe], Rates(1e-3, 1e-3, 1.0), 1, config, generator_of(1, "t"))
    (batch,) = batches(np.unique(train.places), config.batch, 1, generator_of(1, "t"))
    expected = np.flip(np.asarray(seen.given)[batch], axis=2 + axis)
    assert np.array_equal(shown[0].numpy(), expected)


def test_from_scratch_learns_at_its_own_rate_and_in_all_layers_alike(
    table: pd.DataFrame, volumes: Volumes, seen: Seen, part: Part
) -> None:
    tuned = TUNE | {"learning_rate": 0.002, "scratch_learning_rate": 0.007, "layer_decay": 0.5}
    question_ = asked_of(
        table, volumes, seen, parse(ClassifyConfig, ASKED | {"few_shot": [1], "fine_tune": tuned}, "t")
    )
    chosen = [(part, np.flatnonzero(~part.test))]
    ours, scratch = (_Run.of(question_, name, chosen, seen, "all", 5).rates for name in ("encoder", "random_1"))
    assert (ours.encoder, ours.layer_decay) == (0.002, 0.5)
    assert (scratch.encoder, scratch.layer_decay) == (0.007, 1.0)
    assert ours.heads == scratch.heads == tuned["head_learning_rate"]
