"""A step in parts trains the model of the whole step, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pretrain_project import HERE, block, config_of, volumes_of, write_project

from components.errors import UserError
from components.pretrain.loop import train
from tests.unit.test_pretrain_loop import Nothing, in_parts, two_view


@pytest.mark.parametrize("kind", ["mae", "dino", "dino_ibot", "dino_mae"])
def test_parts_one_after_the_other_train_the_model_of_the_whole(kind: str, tmp_path: Path) -> None:
    """Losses, gradients, and centres, which move once a step by the logits of all its parts."""
    volumes = volumes_of(write_project(tmp_path, "head"), "head")
    whole, parts = (
        train(
            config_of("head", objective=in_parts(kind), volumes_per_step=4, accumulate=n), volumes, HERE, Nothing(), str
        )
        for n in (1, 4)
    )
    for a, b in zip(whole["history"], parts["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-3)
    for name in {"centre", "patch_centre"} & set(whole["objective"]):
        assert whole["objective"][name].any()
        assert torch.allclose(parts["objective"][name], whole["objective"][name], atol=1e-5), name


ANOTHER_MODEL: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder 'segres'": ("wholebody", {}),
    "objective 'vicreg'": ("wholebody", {"objective": two_view("vicreg"), "encoder": block("head")["encoder"]}),
    "objective 'simsiam'": ("wholebody", {"objective": two_view("simsiam"), "encoder": block("head")["encoder"]}),
    "objective 'across_volume'": (
        "wholebody", {"objective": two_view("across_volume"), "encoder": block("head")["encoder"]}
    ),
    "objective.dino.standardise": ("head", {}),
    "objective.dino.koleo_weight": (
        "head",
        {"objective": in_parts("dino") | {"dino": in_parts("dino")["dino"] | {"koleo_weight": 0.1}}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", ANOTHER_MODEL)
def test_parts_that_would_train_another_model_are_refused_in_one_line(why: str) -> None:
    line, changes = ANOTHER_MODEL[why]
    size = block("wholebody")["input"] | {"size_vox": [12, 24, 24]}
    changes = changes | ({"input": size} if line == "wholebody" else {})
    assert config_of(line, **changes).accumulate == 1
    with pytest.raises(
        UserError, match=f"accumulate 2 would train another model with {why}.*: 1; where memory"
    ) as caught:
        config_of(line, accumulate=2, **changes)
    assert "\n" not in str(caught.value)


def test_within_volume_on_a_transformer_may_be_cut_into_parts() -> None:
    size = block("wholebody")["input"] | {"size_vox": [12, 24, 24]}
    assert config_of("wholebody", input=size, encoder=block("head")["encoder"], accumulate=2).accumulate == 2
