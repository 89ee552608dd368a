"""The published recipes are valid parameters of the published sizes."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from components.errors import UserError
from components.models.build import build_encoder, parameter_count
from components.preprocess.config import PreprocessConfig
from components.pretrain.config import PretrainConfig
from components.registry import check_file
from components.settings import ParamsError, load_stage, parse, read_yaml
from flows.champion import _of_recipe
from flows.recipes import _recipe, load_recipe, names, pin_recipe

MILLIONS = {"ct_fm": 77.760992, "fm_ct": 89.4}


@pytest.mark.parametrize("as_coded", [False, True])
@pytest.mark.parametrize("name", MILLIONS)
def test_a_recipe_takes_the_place_of_the_lines_parameters(
    name: str, as_coded: bool, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(names()) == set(MILLIONS)
    recipe = load_recipe(name, as_coded)
    shutil.copy("params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = read_yaml()
    pin_recipe(recipe["base"], recipe)
    check_file()
    config = load_stage(PretrainConfig, recipe["base"], "pretrain")
    with torch.device("meta"):
        encoder = build_encoder(config.encoder, config.input, seed=0)
    assert parameter_count(encoder) / 1e6 == pytest.approx(MILLIONS[name], abs=0.4 if name == "fm_ct" else 1e-6)
    grid = load_stage(PreprocessConfig, recipe["base"], "preprocess")
    assert (grid.orientation, grid.spacing_mm) == (config.input.orientation, config.input.spacing_mm)
    other = next(line for line in ("wholebody", "head") if line != recipe["base"])
    assert read_yaml()[other] == before[other]
    assert "# ours" in Path("params.yaml").read_text()


def test_as_coded_differs_where_the_authors_code_does(project: Path) -> None:
    assert load_recipe("ct_fm", as_coded=True)["preprocess"]["foreground_hu"] == 0
    as_coded = load_recipe("fm_ct", as_coded=True)["pretrain"]["objective"]
    assert (as_coded["kind"], as_coded["dino"]["ema_end"], as_coded["dino"]["ema_start"]) == ("dino", 0.994, 0.994)
    assert load_recipe("fm_ct")["pretrain"]["objective"]["dino"]["ema_end"] == 1.0


def test_what_is_ours_in_fm_ct_is_marked_and_left_out_as_coded(project: Path) -> None:
    lines = (project_recipes := Path("components/pretrain/recipes")).joinpath("fm_ct.yaml").read_text().splitlines()
    first = lines.index("as_coded:")
    for setting in ("standardise: true", "position_waves: grid"):
        (line,) = [line for line in lines[:first] if setting in line]
        assert "# ours" in line
    ours, as_coded = (load_recipe("fm_ct", on)["pretrain"] for on in (False, True))
    assert (ours["objective"]["dino"]["standardise"], ours["encoder"]["position_waves"]) == (True, "grid")
    assert (as_coded["objective"]["dino"]["standardise"], as_coded["encoder"]["position_waves"]) == (False, "customary")
    assert all(load_recipe(path.stem)["pretrain"]["device"] == "cuda" for path in project_recipes.glob("*.yaml"))


def test_a_mistake_in_a_recipe_is_named(project: Path) -> None:
    block = dict(load_recipe("ct_fm")["pretrain"]) | {"workers": 3}
    with pytest.raises(ParamsError, match="ct_fm: volumes_per_step 16 must be a multiple of workers x acc"):
        parse(PretrainConfig, block, "ct_fm")


@pytest.mark.parametrize(("line", "recipe"), [("head", "ct_fm"), ("wholebody", "fm_ct")])
def test_weights_of_a_recipe_for_another_grid_are_refused(line: str, recipe: str, project: Path) -> None:
    with pytest.raises(
        UserError, match=rf"recipe '{recipe}' is not allowed with line '{line}': its encoder sees spacing"
    ):
        _of_recipe(line, recipe)


def test_weights_of_a_recipe_for_the_lines_grid_are_taken(project: Path) -> None:
    assert _of_recipe("wholebody", "ct_fm").input.size_vox == (32, 128, 128)


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what recipes are read from and written to."""
    (tmp_path / "components/pretrain").mkdir(parents=True)
    shutil.copytree(project / "components/pretrain/recipes", tmp_path / "components/pretrain/recipes")
    shutil.copy(project / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_that_contradicts_the_line_is_not_written(checkout: Path) -> None:
    before = (checkout / "params.yaml").read_text()
    with pytest.raises(ParamsError, match=r"tasks.organs: not allowed with wholebody.pretrain.input.sees 'scan'"):
        pin_recipe("wholebody", load_recipe("fm_ct"))
    assert (checkout / "params.yaml").read_text() == before


def test_a_recipe_can_be_shown_without_the_line_that_it_goes_with(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((checkout / "params.yaml").read_text())
    content["lines"] = ["head"]
    del content["wholebody"]
    (checkout / "params.yaml").write_text(yaml.safe_dump(content))
    shown = {"name": "ct_fm", "as_coded": False, "onto": None, "write": False}
    assert _recipe(argparse.Namespace(**shown)) == 0
    assert "init_filters: 32" in capsys.readouterr().out
    with pytest.raises(ParamsError, match="line 'wholebody' is not allowed"):
        _recipe(argparse.Namespace(**shown | {"write": True}))
