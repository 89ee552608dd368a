"""``pretrain.start``: a run begins with weights that were given, or hands them on as they are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from pretrain_project import HERE, block, config_of, volumes_of, write_project
from test_params import ROOT as REPOSITORY_ROOT
from test_params import changed

from components.errors import PassingError, UserError
from components.files import read_json, sha256_file, write_json
from components.models.build import build_encoder
from components.models.embed import DESCRIPTION, WEIGHTS, EmbedConfig, Embedder, write_weights
from components.pretrain import __main__ as stage
from components.pretrain.config import NtXentConfig, PretrainConfig
from components.pretrain.local_driver import train_here
from components.pretrain.loop import Trainer
from components.pretrain.objectives.build import build_objective
from components.pretrain.start import checked, placed
from components.registry import check_file
from components.settings import ParamsError, parse, read_yaml
from flows.recipes import load_recipe
from flows.start import check_start
from tests.hub import Hub

OUT = Path("data/wholebody/pretrain")
FILE = {"kind": "file", "file": "given.safetensors", "licence": "Apache-2.0"}
WHOLE = {**FILE, "sha256": "a" * 64}


def given(line: str = "wholebody", seed: int = 11) -> dict[str, torch.Tensor]:
    """Weights that no run of the tests begins with."""
    config = config_of(line)
    return dict(build_encoder(config.encoder, config.input, seed).state_dict())


def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: Any, line: str = "wholebody", **changes: Any
) -> Path:
    """A project that starts from ``tensors``; returns their file."""
    public = tmp_path / "public"
    public.mkdir(exist_ok=True)
    file = public / "given.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, file)
    start = {**FILE, "sha256": sha256_file(file)}
    monkeypatch.chdir(write_project(tmp_path / "project", line, **{"steps": 0, "start": start, **changes}))
    monkeypatch.setenv("CTFOUNDRY_ROOT_WEIGHTS", str(public))
    return file


@pytest.mark.parametrize("form", ["plain", "without counters", "halves", "prefixed", "with heads"])
def test_a_release_of_no_step_is_the_weights_that_were_given(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = given()
    stored: dict[str, torch.Tensor] = {
        "plain": tensors,
        "without counters": {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")},
        "halves": {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()},
        "prefixed": {f"encoder.{k}": v for k, v in tensors.items()},
        "with heads": {f"encoder.{k}": v for k, v in tensors.items()} | {"up_layers.0.weight": torch.ones(2)},
    }[form]
    file = project(tmp_path, monkeypatch, stored, workers=2)
    stage.pretrain("wholebody")
    theirs = safetensors.torch.load_file(OUT / "encoder" / WEIGHTS)
    if form in ("plain", "without counters", "halves"):
        assert (OUT / "encoder" / WEIGHTS).read_bytes() == file.read_bytes()
    else:
        assert theirs.keys() == tensors.keys()
        assert all(torch.equal(theirs[name], value) for name, value in tensors.items())
    loaded = Embedder.load(OUT / "encoder").encoder.state_dict()
    rounded = {k: v.half().float() if form == "halves" and v.is_floating_point() else v for k, v in tensors.items()}
    assert all(torch.equal(loaded[name], value) for name, value in rounded.items())


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_a_run_of_no_step_looks_at_its_weights_and_leaves_what_any_run_leaves(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project(tmp_path, monkeypatch, given(line), line)
    stage.pretrain(line)
    out = Path("data") / line / "pretrain"
    assert (out / "encoder" / WEIGHTS).read_bytes() == file.read_bytes()
    history = pd.read_csv(out / "history.csv")
    assert history["step"].tolist() == [0]
    assert history[["loss", "embedding_spread", "effective_rank", "alignment"]].notna().all(axis=None)
    summary = read_json(out / "summary.json")
    assert (summary["steps"], summary["samples_seen"], summary["start"]) == (0, 0, sha256_file(file))
    assert all((out / name).stat().st_size > 1000 for name in ("history.png", "views.png"))
    assert not list((Path(".ctfoundry") / "runs").iterdir()), "nothing is to be resumed"


def test_a_look_at_the_published_sizes_fits_a_machine_that_only_evaluates() -> None:
    recipe = load_recipe("ct_fm")["pretrain"] | {"start": WHOLE, "steps": 0, "candidates": 1}
    config = parse(PretrainConfig, recipe, "ct_fm").glance()
    assert isinstance(config.objective, NtXentConfig)
    assert (config.volumes_per_step, config.objective.views.crops_per_volume) == (2, 2)
    assert (config.compile, config.precision) == (False, "float32")
    small = config_of("wholebody", volumes_per_step=1).glance()
    assert isinstance(small.objective, NtXentConfig)
    assert (small.volumes_per_step, small.objective.views.crops_per_volume) == (1, 3), "no more than the block says"


def test_equal_weights_leave_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, given())
    found = []
    for _ in range(2):
        stage.pretrain("wholebody")
        found.append({path.name: path.read_bytes() for path in OUT.rglob("*") if path.is_file()})
    assert found[0] == found[1]


def test_weights_that_tell_nothing_apart_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = {k: torch.zeros_like(v) if k.endswith("conv_init.weight") else v for k, v in given().items()}
    project(tmp_path, monkeypatch, flat, collapse={"min_spread": 0.01, "patience": 2})
    with pytest.raises(UserError, match=r"start: its weights do not tell volumes apart: embedding_spread .* 0\.01"):
        stage.pretrain("wholebody")
    assert not OUT.exists()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, ...], dict[str, Any], Any]:
    """A run that learned something: its volumes, its settings, and its end."""
    folder = tmp_path_factory.mktemp("earlier")
    volumes = volumes_of(write_project(folder, "wholebody", volumes=6), "wholebody")
    settings = {"objective": block("wholebody")["objective"] | {"kind": "across_volume"}, "steps": 60}
    settings |= {"volumes_per_step": 4}
    return volumes, settings, train_here(config_of("wholebody", **settings), volumes, folder / "run", lambda _: None)


@pytest.mark.parametrize("all_of_it", [False, True])
def test_continued_training_begins_at_their_loss_and_not_at_a_random_ones(
    all_of_it: bool, earlier: tuple[tuple[Path, ...], dict[str, Any], Any], tmp_path: Path
) -> None:
    volumes, settings, state = earlier
    losses = [row["loss"] for row in state["history"]]
    at_random, at_the_end = losses[0], sum(losses[-10:]) / 10
    assert at_the_end < at_random - 0.15, "there is something to begin with"
    tensors = {k: v for k, v in state["objective"].items() if all_of_it or k.startswith("encoder.")}
    write_weights(tmp_path / "start.safetensors", tensors)
    config = config_of("wholebody", **settings, start=WHOLE)
    trainer = Trainer(config, volumes, HERE, tmp_path / "start.safetensors")
    trainer.run_step()
    (first,) = trainer.history
    assert first["loss"] < (at_random + at_the_end) / 2
    assert first["loss"] == pytest.approx(at_the_end, abs=0.5 * (at_random - at_the_end))


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_a_run_goes_on_from_all_that_another_trained(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heads and its teacher too: on the same views, the loss is the very loss that the run would have had next."""
    monkeypatch.chdir(write_project(tmp_path / "first", line, steps=3))
    stage.pretrain(line)
    end = Path("data") / line / "pretrain" / "encoder" / stage.OBJECTIVE
    volumes = volumes_of(Path(), line)
    state = train_here(config_of(line, steps=3), volumes, tmp_path / "run", lambda _: None)
    theirs = safetensors.torch.load_file(end)
    assert theirs.keys() == state["objective"].keys()
    resumed = Trainer(config_of(line, steps=4), volumes, HERE)
    resumed.restore(state)
    started = Trainer(config_of(line, steps=4, start=WHOLE), volumes, HERE, end)
    started.incoming.go_on(3, started.incoming.skipped)
    for trainer in (resumed, started):
        trainer.run_step()
    assert started.history[0]["loss"] == resumed.history[3]["loss"]


def test_what_the_weights_do_not_carry_begins_anew_and_the_teacher_as_the_student(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", given("head"))
    config = config_of("head")
    begun = build_objective(config, tmp_path / "w.safetensors").state_dict()
    fresh = build_objective(config).state_dict()
    theirs = given("head")
    for name, value in theirs.items():
        assert torch.equal(begun[f"encoder.{name}"], value)
        assert torch.equal(begun[f"teacher.0.{name}"], value)
    others = [name for name in fresh if not name.startswith(("encoder.", "teacher.0."))]
    assert len(others) > 5
    assert all(torch.equal(begun[name], fresh[name]) for name in others), "as the seed alone makes them"


def test_the_log_says_what_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = project(tmp_path, monkeypatch, given())
    with caplog.at_level(logging.INFO):
        stage.pretrain("wholebody")
    said = (
        f"starting from file given.safetensors, SHA-256 {sha256_file(file)}: heads begin anew (the weights are an enc"
    )
    assert said in caplog.text


def test_weights_of_another_encoder_are_one_line_that_tells_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = given()
    tensors["surplus.weight"] = torch.ones(1)
    tensors["conv_init.weight"] = torch.ones(2, 3, 3, 3, 3)
    del tensors["layers.1.blocks.0.norm1.weight"], tensors["layers.1.blocks.0.norm1.bias"]
    project(tmp_path, monkeypatch, tensors)
    with pytest.raises(UserError) as told:
        stage.pretrain("wholebody")
    assert str(told.value) == (
        "start: file given.safetensors: does not fit pretrain.encoder of kind 'segres' with 1 windows: 2 lacking, "
        "first layers.1.blocks.0.norm1.bias, layers.1.blocks.0.norm1.weight; 1 unknown, first surplus.weight; "
        "1 of another shape, first conv_init.weight: (2, 3, 3, 3, 3) for (2, 1, 3, 3, 3)"
    )
    assert not OUT.exists()


def test_what_is_wrong_with_the_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = project(tmp_path, monkeypatch, given())
    right = sha256_file(file)
    content = file.read_bytes()

    def refused(said: str) -> None:
        with pytest.raises(UserError, match=said) as told:
            check_start("wholebody", fetch=False)
        assert len(str(told.value).splitlines()) == 1

    assert check_start("wholebody", fetch=False) == "wholebody: file given.safetensors: fits"
    file.write_bytes(content + b" ")
    where = r"params.yaml: wholebody.pretrain.start"
    refused(rf"{where}.sha256: '{right}' is not allowed: file given.safetensors has SHA-256 {sha256_file(file)}; write")
    file.unlink()
    refused(rf"{where}: file given.safetensors: there is no file .*public/given.safetensors")
    monkeypatch.delenv("CTFOUNDRY_ROOT_WEIGHTS")
    refused("root 'weights' of line wholebody: not configured on this machine; set CTFOUNDRY_ROOT_WEIGHTS=<folder>")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"pickled", "weights given.safetensors: not readable as safetensors"),
        ({"conv_init.weight": torch.full((2, 1, 3, 3, 3), torch.nan)}, "conv_init.weight holds values that are not"),
        ({}, r"\d+ lacking, first"),
        ({k: v.to(torch.int8) for k, v in given().items()}, r"\d+ of another type, first conv_init.weight: torch.int8"),
    ],
)  # fmt: skip
def test_what_is_no_encoders_weights_is_one_line(
    content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project(tmp_path, monkeypatch, {} if isinstance(content, bytes) else content)
    if isinstance(content, bytes):
        file.write_bytes(content)
        start = {**FILE, "sha256": sha256_file(file)}
        write_project(Path.cwd(), "wholebody", steps=0, start=start)
    with pytest.raises(UserError, match=said):
        stage.pretrain("wholebody")


def test_a_release_says_what_its_encoder_is_and_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("wholebody")
    released = tmp_path / "releases" / "theirs"
    encoder = build_encoder(config.encoder, config.input, 11)
    Embedder.from_encoder(encoder, EmbedConfig(encoder=config.encoder, input=config.input)).save(released)
    monkeypatch.setenv("CTFOUNDRY_ROOT_WEIGHTS", str(tmp_path / "releases"))
    start = {"kind": "release", "release": "theirs", "licence": "MIT", "sha256": sha256_file(released / WEIGHTS)}
    monkeypatch.chdir(write_project(tmp_path / "project", "wholebody", steps=0, start=start))
    stage.pretrain("wholebody")
    assert (OUT / "encoder" / WEIGHTS).read_bytes() == (released / WEIGHTS).read_bytes()
    theirs = read_json(released / DESCRIPTION)
    theirs["input"]["windows"] = [[40.0, 400.0]]
    write_json(released / DESCRIPTION, theirs)
    with pytest.raises(
        UserError, match=r"encoder.json of start theirs says: input.windows \[\[512.0, 3072.0\]\] is \[\["
    ):
        stage.pretrain("wholebody")
    further = config_of("wholebody", steps=2, start=start)
    assert checked("wholebody", further, fetch=False) == released / WEIGHTS, "training may change what it sees"


REPOSITORY = "somebody/ct_encoder"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """One repository with the weights, and a cache of our own; the project starts from there."""
    write_weights(tmp_path / "model.safetensors", given())
    content = (tmp_path / "model.safetensors").read_bytes()
    start = {"kind": "hub", "repository": REPOSITORY, "revision": "v1", "file": "nets/model.safetensors"}
    start |= {"licence": "Apache-2.0", "sha256": sha256_file(tmp_path / "model.safetensors")}
    monkeypatch.chdir(write_project(tmp_path / "project", "wholebody", steps=0, start=start))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with Hub(REPOSITORY, {"nets/model.safetensors": content}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def test_weights_of_the_hub_are_fetched_once_and_released_as_they_are(hub: Hub) -> None:
    assert check_start("wholebody", fetch=False).endswith(": not here yet; the release fetches it")
    assert not hub.asked
    stage.pretrain("wholebody")
    assert (OUT / "encoder" / WEIGHTS).read_bytes() == hub.files.pop("nets/model.safetensors")
    assert [path.split("?")[0] for path in hub.asked] == [f"/{REPOSITORY}/resolve/v1/nets/model.safetensors"]
    stage.pretrain("wholebody")
    assert len(hub.asked) == 1, "what is here is not asked for again"
    assert check_start("wholebody", fetch=False).endswith(": fits")


def test_a_transfer_cut_short_leaves_nothing_that_counts(hub: Hub) -> None:
    hub.cut = 1000
    with pytest.raises(PassingError, match=r"hub: no nets/model.safetensors of repository 'somebody/.*' at v1: "):
        stage.pretrain("wholebody")
    assert not OUT.exists()
    assert check_start("wholebody", fetch=False).endswith(": not here yet; the release fetches it")
    hub.cut = None
    stage.pretrain("wholebody")
    assert (OUT / "encoder" / WEIGHTS).read_bytes() == hub.files["nets/model.safetensors"]


def test_other_bytes_of_the_hub_are_refused_by_their_digest(hub: Hub) -> None:
    hub.files["nets/model.safetensors"] += b" "
    with pytest.raises(UserError) as told:
        stage.pretrain("wholebody")
    assert "wholebody.pretrain.start.sha256: " in str(told.value)
    assert "nets/model.safetensors of hub repository somebody/ct_encoder at v1 has SHA-256 " in str(told.value)


def test_a_repository_that_is_not_there_is_no_matter_of_waiting(hub: Hub) -> None:
    hub.files.clear()
    with pytest.raises(UserError, match=r"hub: no nets/model.safetensors of repository") as told:
        stage.pretrain("wholebody")
    assert not isinstance(told.value, PassingError)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps 0 is not allowed without start"),
        ({"start": WHOLE, "steps": 0, "candidates": 2}, "candidates 2 is not allowed with steps 0"),
        ({"start": {**WHOLE, "sha256": "A" * 64}}, "start.sha256: 'AAAA"),
        ({"start": {**WHOLE, "file": "/models/a"}}, "start.file: '/models/a' is not allowed: a path such as"),
        ({"start": {**WHOLE, "file": "../a"}}, "start.file: '../a' is not allowed: a path such as"),
        ({"start": {**WHOLE, "licence": "free for all"}}, "start.licence: 'free for all'"),
        ({"start": {**WHOLE, "kind": "url"}}, "start: "),
        ({"start": {**WHOLE, "revison": "x"}}, "start.revison: unknown key"),
        ({"start": FILE}, "start.sha256: missing"),
    ],
)  # fmt: skip
def test_mistakes_in_the_block_are_one_line(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    whole = read_yaml(REPOSITORY_ROOT / "params.yaml")["wholebody"]["pretrain"] | changes
    with pytest.raises(ParamsError) as told:
        check_file(changed(tmp_path, ("wholebody", "pretrain"), whole))
    assert f"wholebody.pretrain: {said}" in str(told.value) or f"wholebody.pretrain.{said}" in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_weights_that_are_released_as_they_are_keep_their_licence(tmp_path: Path) -> None:
    start = {**FILE, "sha256": "a" * 64, "licence": "CC-BY-NC-4.0"}
    whole = read_yaml(REPOSITORY_ROOT / "params.yaml")["wholebody"]["pretrain"] | {"start": start}
    check_file(changed(tmp_path, ("wholebody", "pretrain"), whole))
    with pytest.raises(ParamsError, match=r"wholebody.bundle.licence: 'Apache-2.0' is not allowed .* 'CC-BY-NC-4.0'"):
        check_file(changed(tmp_path, ("wholebody", "pretrain"), whole | {"steps": 0}))


def test_a_half_written_copy_is_never_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = project(tmp_path, monkeypatch, given(), steps=2)
    config = config_of("wholebody", steps=2, start={**FILE, "sha256": sha256_file(file)})
    run = tmp_path / "run"
    run.mkdir()
    (run / "start.safetensors").write_bytes(b"half")
    assert placed("wholebody", config, run) == run / "start.safetensors"
    assert (run / "start.safetensors").read_bytes() == file.read_bytes()
    assert [path.name for path in run.iterdir()] == ["start.safetensors"]
