"""Five whole steps of each objective are those of a plain implementation written from the papers, to the last digits.

Both compute in float64: what differs is a mistake, not rounding. The figures are kept beside it, so that a change that
moves both is seen as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_pretraining import PlainRun
from pretrain_project import HERE, block, config_of, volumes_of, write_project
from torch import Tensor

from components.pretrain.loop import Trainer
from tests.unit.test_pretrain_loop import TWO_VIEW, two_view

STEPS = 5
GOLDEN = Path(__file__).parent / "data" / "pretrain_five_steps.json"
OPTIMISER = {
    "learning_rate": 2e-3, "final_learning_rate": 1e-5, "betas": [0.9, 0.95], "weight_decay": [0.04, 0.4],
    "warmup": 0.4, "clip_norm": 0.5,
}  # fmt: skip


def head(kind: str, **changes: Any) -> dict[str, Any]:
    objective = block("head")["objective"] | {"kind": kind, "mae_weight": 3.0}
    objective["dino"] |= {"koleo_weight": 0.1 if kind == "dino_ibot" else 0.0, "ema_start": 0.8}
    objective["ibot"] |= {"weight": 0.7}
    objective["mae"] |= {"normalise": kind == "mae"}
    return objective | changes


OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: ("wholebody", two_view(kind)) for kind in TWO_VIEW},
    **{kind: ("head", head(kind)) for kind in ("dino", "dino_ibot", "mae", "dino_mae")},
    "as_coded": ("head", head("dino", dino=head("dino")["dino"] | {"standardise": False})),
}


class InDouble:
    """A trainer of ours in float64, and what its model saw."""

    def __init__(self, name: str, folder: Path) -> None:
        line, objective = OBJECTIVES[name]
        self.changes = {"objective": objective, "optimiser": OPTIMISER, "steps": STEPS, "volumes_per_step": 4}
        if line == "head":
            waves = "customary" if name == "as_coded" else "grid"
            self.changes["encoder"] = block("head")["encoder"] | {"registers": 2, "position_waves": waves}
        volumes = volumes_of(write_project(folder, line), line)
        self.trainer = Trainer(config_of(line, **self.changes), volumes, HERE)
        self.trainer.objective.double()
        self.seen: list[dict[str, Tensor]] = []
        render = self.trainer.incoming.views.render

        def doubled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            rendered = render(batch)
            self.seen.append({k: v.double() if v.is_floating_point() else v for k, v in rendered.items()})
            return self.seen[-1]

        self.trainer.incoming.views.render = doubled  # type: ignore[method-assign]
        self.plain = PlainRun(json.loads(json.dumps(block(line, **self.changes))), self.weights())

    def weights(self) -> dict[str, Tensor]:
        """Of everything, the teacher's too."""
        return {name: value.detach().clone() for name, value in self.trainer.objective.named_parameters()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_five_steps_are_those_of_the_plain_implementation(name: str, tmp_path: Path) -> None:
    run = InDouble(name, tmp_path)
    for step in range(STEPS):
        run.trainer.run_step()
        row = run.trainer.history[-1]
        rate, (loss, norm) = run.plain.rate(), run.plain.run_step(run.seen[step])
        assert row["learning_rate"] == pytest.approx(rate), step
        assert row["loss"] == pytest.approx(loss, rel=1e-7), step
        assert row["gradient_norm"] == pytest.approx(norm, rel=1e-5), step
    found = run.weights()
    assert found.keys() == run.plain.w.keys()
    for weight, value in found.items():
        assert torch.allclose(value, run.plain.w[weight], rtol=1e-6, atol=1e-8), weight
    state = run.trainer.objective.state_dict()
    for centre, value in getattr(run.plain.objective, "centres", {}).items():
        if centre in state:
            assert torch.allclose(state[centre], value, rtol=1e-6, atol=1e-8), centre


@pytest.mark.parametrize("name", OBJECTIVES)
def test_five_steps_give_the_figures_that_are_kept(name: str, tmp_path: Path) -> None:
    run = InDouble(name, tmp_path)
    for _ in range(STEPS):
        run.trainer.run_step()
    kept = json.loads(GOLDEN.read_text())[name]
    assert figures(run) == pytest.approx(kept, rel=1e-5)


def figures(run: InDouble) -> dict[str, float]:
    groups: dict[str, list[Tensor]] = {}
    for name, value in run.weights().items():
        groups.setdefault(name.split(".")[0], []).append(value.flatten())
    norms = {f"norm_{group}": float(torch.cat(values).norm()) for group, values in groups.items()}
    return {f"loss_{row['step']}": row["loss"] for row in run.trainer.history} | norms
