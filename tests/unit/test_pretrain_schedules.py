"""What the parameters say of rate, decay and momentum holds at the first, the middle and the last step of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pretrain_project import HERE, block, config_of, volumes_of, write_project

from components.pretrain.config import OptimiserConfig, PretrainConfig
from components.pretrain.loop import Trainer
from components.pretrain.objectives.build import build_objective
from components.pretrain.optimiser import build_optimiser, cosine_schedule, learning_rate
from components.settings import parse, read_yaml

STEPS = 9
OPTIMISER = {
    "learning_rate": 1e-3, "final_learning_rate": 1e-5, "betas": [0.9, 0.999], "weight_decay": [0.04, 0.4],
    "warmup": 1 / 3, "clip_norm": 3.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Per step: each group's rate and decay, the norm that the update had room for, and the teacher's momentum."""
    volumes = volumes_of(write_project(tmp_path_factory.mktemp("run"), "head"), "head")
    objective = block("head")["objective"] | {"kind": "dino"}
    config = config_of("head", steps=STEPS, optimiser=OPTIMISER, objective=objective)
    trainer, rows = Trainer(config, volumes, HERE), []
    teacher, student = (
        module.blocks[0].mlp[0].weight for module in (trainer.objective.teacher[0], trainer.objective.encoder)
    )
    for _ in range(STEPS):
        before = teacher.detach().double().clone()
        trainer.run_step()
        towards = student.detach().double() - before
        moved = float(((teacher.detach().double() - before) * towards).sum() / towards.square().sum())
        decayed, plain = trainer.optimiser.param_groups
        rows.append(
            {"rate": decayed["lr"], "rate_plain": plain["lr"], "decay": decayed["weight_decay"],
             "decay_plain": plain["weight_decay"], "momentum": 1 - moved}
        )  # fmt: skip
    return rows


def test_schedule_moves_from_its_first_to_its_last_step() -> None:
    values = [cosine_schedule(0.994, 1.0, step / 100) for step in range(101)]
    assert values[0] == pytest.approx(0.994)
    assert values[-1] == pytest.approx(1.0)
    assert values == sorted(values)


def test_learning_rate_warms_up_then_falls_to_its_end() -> None:
    config = parse(OptimiserConfig, block("head")["optimiser"] | {"final_learning_rate": 1e-6}, "optimiser")
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3 / 20)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < 5e-6


def test_the_rate_of_both_groups_warms_up_then_falls_along_a_cosine(run: list[dict[str, float]]) -> None:
    warm = [1e-3 * (step + 1) / 3 for step in range(3)]
    fall = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert [row["rate"] for row in run] == pytest.approx(warm + fall)
    assert [row["rate_plain"] for row in run] == pytest.approx(warm + fall)


def test_the_decay_goes_from_its_first_to_its_second_value_and_is_zero_for_norms_biases_and_tokens(
    run: list[dict[str, float]],
) -> None:
    expected = [0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert expected[0] == pytest.approx(0.04)
    assert expected[-1] > 0.38
    assert [row["decay"] for row in run] == pytest.approx(expected)
    assert {row["decay_plain"] for row in run} == {0.0}


def test_the_teachers_momentum_goes_from_its_start_to_its_end_over_the_whole_run(run: list[dict[str, float]]) -> None:
    """FM-CT's public code never gets past the first epoch's value; the last step here leaves the teacher as it is."""
    expected = [1.0 + (0.9 - 1.0) * (1 + math.cos(math.pi * (step + 1) / STEPS)) / 2 for step in range(STEPS)]
    assert [row["momentum"] for row in run] == pytest.approx(expected, abs=2e-4)
    assert run[-1]["momentum"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_what_the_shipped_parameters_decay_and_what_not(line: str, project: Path) -> None:
    config = parse(PretrainConfig, read_yaml()[line]["pretrain"], line)
    objective = build_objective(config)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    decayed, plain = (
        {names[id(p)] for p in g["params"]} for g in build_optimiser(objective, config.optimiser).param_groups
    )
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    assert decayed | plain == trained
    assert not decayed & plain
    assert not any(name.startswith("teacher") for name in trained)
    tokens = {name for name in trained if name.rpartition(".")[2] in ("class_token", "registers", "mask_token")}
    assert len(tokens) == (2 if line == "head" else 0), "nothing is masked, so that there is no token for it"
    norms = {name for name in trained if "norm" in name.rpartition(".")[0].rpartition(".")[2]}
    biases = {name for name in trained if name.endswith("bias")}
    assert norms
    assert biases
    assert plain == tokens | norms | biases


def test_the_norm_of_the_gradient_is_cut_where_the_parameters_say(tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, "wholebody"), "wholebody")
    for clip, bites in ((1e-3, True), (None, False)):
        trainer = Trainer(config_of("wholebody", optimiser=OPTIMISER | {"clip_norm": clip}), volumes, HERE)
        trainer.run_step()
        left = torch.cat([p.grad.flatten() for p in trainer.objective.parameters() if p.grad is not None]).norm()
        assert trainer.history[0]["gradient_norm"] > 1e-2, "the history shows it before"
        assert float(left) == pytest.approx(1e-3 if bites else trainer.history[0]["gradient_norm"], rel=1e-3)
