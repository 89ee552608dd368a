"""The loop: resumable at any checkpoint, stops with a clear word, writes equal bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_project import block, write_project

from components.files import sha256_tree
from components.params import UserError, parse
from components.pretrain import __main__ as stage
from components.pretrain.config import OptimiserConfig, PretrainConfig
from components.pretrain.loading import sample_order
from components.pretrain.local_driver import read_state, write_state
from components.pretrain.loop import State, learning_rate, train
from components.pretrain.workers import World

HERE = World(0, 1, torch.device("cpu"))


class InMemory:
    """Keeps every checkpoint, as a file would: a later step must not change an earlier state."""

    def __init__(self, folder: Path, start: State | None = None) -> None:
        self.folder, self.start, self.steps = folder, start, list[int]()

    def load(self) -> State | None:
        return self.start

    def save(self, state: State | None) -> None:
        assert state is not None
        self.steps.append(state["step"])
        write_state(self.folder / f"{state['step']}.pt", state)


def config_of(line: str, **changes: Any) -> PretrainConfig:
    return parse(PretrainConfig, block(line, **changes), f"{line}.pretrain")


def volumes_of(root: Path, line: str) -> tuple[Path, ...]:
    return tuple(sorted((root / "data" / line / "preprocess" / "0" / "volumes").iterdir()))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_going_on_from_a_checkpoint_ends_in_the_same_state(line: str, tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, line), line)
    kept = InMemory(tmp_path)
    whole = train(config_of(line), volumes, HERE, kept, lambda _: None)
    assert kept.steps == [2, 4, 6]
    lines: list[str] = []
    resumed = train(config_of(line), volumes, HERE, InMemory(tmp_path, read_state(tmp_path / "2.pt")), lines.append)
    assert equal(whole, resumed), "weights, optimiser, teacher, centre and history"
    assert lines[0] == "resuming from the checkpoint at step 2 of 6"
    assert [row["step"] for row in resumed["history"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", ["dino", "mae", "dino_mae"])
def test_each_head_objective_learns(kind: str, tmp_path: Path) -> None:
    """Painting gets better; distilling keeps its teacher between one answer for all and no answer."""
    objective = block("head")["objective"] | {"kind": kind}
    volumes = volumes_of(write_project(tmp_path, "head"), "head")
    config = config_of("head", objective=objective, steps=30)
    history = train(config, volumes, HERE, InMemory(tmp_path), lambda _: None)["history"]
    assert ("mae_loss" in history[0]) == ("mae" in kind)
    assert ("teacher_entropy" in history[0]) == ("dino" in kind)
    if "mae" in kind:
        assert history[-1]["mae_loss"] < 0.8 * history[0]["mae_loss"]
    if "dino" in kind:
        assert 0.02 < history[-1]["teacher_entropy"] < 0.98


def test_every_volume_is_seen_once_per_epoch_in_another_order_each() -> None:
    epochs = [[sample_order(1, 7, epoch * 7 + place) for place in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_learning_rate_warms_up_then_falls_to_its_end() -> None:
    config = parse(OptimiserConfig, block("head")["optimiser"] | {"final_learning_rate": 1e-6}, "optimiser")
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3 / 20)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 5e-6


def test_a_damaged_volume_is_named(tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, "head"), "head")
    volumes[0].write_bytes(b"not a volume")
    with pytest.raises(UserError, match=volumes[0].name):
        train(config_of("head"), volumes, HERE, InMemory(tmp_path), lambda _: None)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    optimiser = block("wholebody")["optimiser"] | {"learning_rate": 1e20, "clip_norm": 1e30}
    volumes = volumes_of(write_project(tmp_path, "wholebody"), "wholebody")
    with pytest.raises(UserError, match="is not finite; lower optimiser"):
        train(config_of("wholebody", optimiser=optimiser), volumes, HERE, InMemory(tmp_path), lambda _: None)


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_the_stage_writes_equal_bytes_twice(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    for name in ("first", "second"):
        monkeypatch.chdir(write_project(tmp_path / name, line))
        stage.pretrain(line)
        output = Path("data") / line / "pretrain"
        assert sorted(p.name for p in output.iterdir()) == [
            "encoder",
            "history.csv",
            "history.png",
            "summary.json",
            "views.png",
        ]
        hashes.append(sha256_tree(output))
        assert not list(stage.RUNS.iterdir())
    assert hashes[0] == hashes[1]


def test_the_runs_name_changes_with_the_temperature_and_the_data(tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, "wholebody"), "wholebody")
    config = config_of("wholebody")
    warmer = config_of("wholebody", objective=block("wholebody")["objective"] | {"temperature": 0.2})
    names = {
        stage.run_name("wholebody", config, volumes),
        stage.run_name("wholebody", warmer, volumes),
        stage.run_name("wholebody", config, volumes[1:]),
    }
    assert len(names) == 3
    assert stage.run_name("wholebody", config, volumes) in names


def test_mistakes_in_the_parameters_are_named() -> None:
    with pytest.raises(
        UserError,
        match="volumes_per_step 2 must be a multiple of workers x accumulate, 3 x 1",
    ):
        config_of("head", workers=3)
    with pytest.raises(UserError, match="does not go with objective"):
        config_of("head", encoder=block("wholebody")["encoder"])
    with pytest.raises(UserError, match="temperature"):
        config_of("wholebody", objective=block("wholebody")["objective"] | {"temperature": 0.0})
