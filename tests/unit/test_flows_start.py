"""``ctfoundry start``: weights become a block of params.yaml, or one line says why not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_flows_sets import run

from components.files import sha256_file
from components.models.build import build_encoder
from components.models.embed import WEIGHTS, EmbedConfig, Embedder, write_weights
from components.pretrain.config import PretrainConfig
from components.registry import check_file
from components.settings import load_stage, parse, read_yaml
from components.sources.roots import root_of
from flows.recipes import load_recipe
from tests.hub import Hub

LINE = "wholebody"
LICENCE = ("--licence", "Apache-2.0")


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's parameters, and ``public/w.safetensors`` of the line's own size."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(project / name, tmp_path)
    recipes = Path("components/pretrain/recipes")
    shutil.copytree(project / recipes, tmp_path / recipes)
    monkeypatch.chdir(tmp_path)
    config = load_stage(PretrainConfig, LINE, "pretrain")
    encoder = build_encoder(config.encoder, config.input, 5)
    write_weights(Path("public/w.safetensors"), encoder.state_dict())
    Embedder.from_encoder(encoder, EmbedConfig(encoder=config.encoder, input=config.input)).save(Path("public/theirs"))
    return tmp_path


def block() -> dict[str, Any]:
    return dict(read_yaml()[LINE]["pretrain"])


def test_a_file_becomes_a_block_that_is_valid_and_nothing_else_changes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("params.yaml").read_text().splitlines()
    assert run("start", "public/w.safetensors", *LICENCE, monkeypatch=monkeypatch) == 0
    digest = sha256_file(Path("public/w.safetensors"))
    assert f"from file w.safetensors, SHA-256 {digest}; the release is those weights" in capsys.readouterr().out
    check_file()
    assert block()["start"] == {"kind": "file", "file": "w.safetensors", "sha256": digest, "licence": "Apache-2.0"}
    assert (block()["steps"], root_of("weights", LINE)) == (0, checkout / "public")
    gone = [line for line in before if line not in Path("params.yaml").read_text().splitlines()]
    assert [line.split()[0] for line in gone] == ["steps:"], "start: null stays the other line's"
    assert run("params", monkeypatch=monkeypatch) == 0
    assert f"{LINE}: file w.safetensors: fits" in capsys.readouterr().out


def test_a_release_brings_its_own_encoder_and_input(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_stage(PretrainConfig, LINE, "pretrain")
    config = EmbedConfig(
        encoder=small.encoder.model_copy(update={"init_filters": 4}),
        input=small.input.model_copy(update={"size_vox": (8, 16, 16)}),
    )
    Embedder.from_encoder(build_encoder(config.encoder, config.input, 5), config).save(Path("public/theirs"))
    assert run("start", "public/theirs", *LICENCE, "--steps", "30", monkeypatch=monkeypatch) == 0
    assert block()["encoder"]["init_filters"] == 4
    assert block()["input"]["size_vox"] == [8, 16, 16]
    assert (block()["start"]["kind"], block()["steps"]) == ("release", 30)


def test_published_sizes_are_a_recipes_and_their_weights_the_hubs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names and shapes of CT-FM's public encoder: MONAI's at 32 filters and blocks (1, 2, 2, 4, 4)."""
    recipe = parse(PretrainConfig, load_recipe("ct_fm")["pretrain"], "ct_fm")
    write_weights(Path("ct_fm"), build_encoder(recipe.encoder, recipe.input, 5).state_dict())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(checkout / "cache"))
    with Hub("project-lighter/ct_fm_feature_extractor", {"model.safetensors": Path("ct_fm").read_bytes()}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        source = "project-lighter/ct_fm_feature_extractor"
        assert run("start", source, *LICENCE, "--recipe", "ct_fm", monkeypatch=monkeypatch) == 0
    assert block()["start"] == {
        "kind": "hub", "repository": source, "revision": "main", "file": "model.safetensors",
        "sha256": sha256_file(Path("ct_fm")), "licence": "Apache-2.0",
    }  # fmt: skip
    assert block()["encoder"] == {"kind": "segres", "init_filters": 32, "blocks_down": [1, 2, 2, 4, 4]}
    assert block()["input"]["size_vox"] == [32, 128, 128]
    check_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["public/w.safetensors", "--recipe", "ct_fm"], "does not fit pretrain.encoder of kind 'segres'"),
        (["public/w.safetensors", "--line", "head"], "does not fit pretrain.encoder of kind 'vit'"),
        (["public/w.safetensors", "--steps", "-1"], "wholebody.pretrain.steps: -1 is not allowed"),
        (["public"], "start 'public': the folder holds no encoder.safetensors"),
        (["nowhere.safetensors"], "start 'nowhere.safetensors': neither a file, nor a release's folder, nor owner/"),
        (["public/odd"], "not readable as safetensors"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    words: list[str],
    said: str,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("public/odd").write_text("pickled")
    before = Path("params.yaml").read_bytes()
    assert run("start", *words, *LICENCE, monkeypatch=monkeypatch) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert Path("params.yaml").read_bytes() == before


def test_weights_in_another_form_are_taken_too(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = safetensors.torch.load_file("public/theirs/" + WEIGHTS)
    prefixed = {f"encoder.{name}": value.to(torch.bfloat16) for name, value in tensors.items() if value.ndim}
    safetensors.torch.save_file(prefixed, "public/prefixed")
    assert run("start", "public/prefixed", *LICENCE, monkeypatch=monkeypatch) == 0
