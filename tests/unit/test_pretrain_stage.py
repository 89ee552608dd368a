"""A run's name, its kept encoders, and the device that it was asked to use."""

from __future__ import annotations

import json
import resource
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import torch
from pretrain_project import HERE, InMemory, block, config_of, volumes_of, write_project

from components import arithmetic
from components.errors import UserError
from components.files import read_json
from components.models.embed import candidate_file, device_of
from components.pretrain import __main__ as stage
from components.pretrain import ray_driver
from components.pretrain.checkpoints import read_state, write_candidate
from components.pretrain.local_driver import train_here
from components.pretrain.loop import train
from components.pretrain.workers import on_gpus
from components.tables import read_table


def training_of(root: Path) -> pd.DataFrame:
    return read_table(root / "data" / "wholebody" / "curate" / "training.parquet")


def test_the_runs_name_changes_with_what_decides_the_weights_and_with_nothing_else(tmp_path: Path) -> None:
    training = training_of(write_project(tmp_path, "wholebody"))
    config = config_of("wholebody")
    warmer = config_of("wholebody", objective=block("wholebody")["objective"] | {"temperature": 0.2})
    changed = training.assign(sha256=training["sha256"].where(training.index != 1, "0" * 64))
    name = stage.run_name("wholebody", config, training)
    others = {
        stage.run_name("wholebody", warmer, training),
        stage.run_name("wholebody", config, training[1:]),
        stage.run_name("wholebody", config, changed),
        stage.run_name("head", config, training),
    }
    assert len(others | {name}) == 5
    same = config_of("wholebody", loaders=3, checkpoint_every=5, activation_checkpointing=True)
    shutil.rmtree(tmp_path / "data/wholebody/preprocess")  # no volume is read for a name
    assert stage.run_name("wholebody", same, training.sample(frac=1, random_state=0)) == name


@pytest.mark.parametrize(
    ("module", "decides"),
    [("pretrain/loop.py", True), ("pretrain/objectives/dino.py", True), ("models/vit.py", True), ("ct/store.py", True),
     ("pretrain/ray_driver.py", True), ("pretrain/plots.py", False), ("models/embed.py", False),
     ("pretrain/__main__.py", False)],
)  # fmt: skip
def test_the_runs_name_changes_with_the_code_of_a_step(
    module: str, decides: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_of(write_project(tmp_path / "project", "wholebody"))
    components = shutil.copytree(stage.ROOT / "components", tmp_path / "components")
    monkeypatch.setattr(stage, "ROOT", tmp_path)
    before = stage.run_name("wholebody", config_of("wholebody"), training)
    path = components / module
    path.write_text(path.read_text() + "\n")
    assert (stage.run_name("wholebody", config_of("wholebody"), training) != before) is decides


def test_the_runs_name_changes_with_the_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a run on this processor's own kernels must not go on as one that is the same anywhere."""
    training, config = training_of(write_project(tmp_path, "wholebody")), config_of("wholebody")
    monkeypatch.delenv(arithmetic.VARIABLE, raising=False)
    unset = stage.run_name("wholebody", config, training)
    monkeypatch.setenv(arithmetic.VARIABLE, arithmetic.PORTABLE)
    portable = stage.run_name("wholebody", config, training)
    monkeypatch.setenv(arithmetic.VARIABLE, arithmetic.MACHINE)
    assert stage.run_name("wholebody", config, training) == unset != portable


def test_portable_stays_off_gpus_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for mode, used in ((arithmetic.MACHINE, True), (arithmetic.PORTABLE, False)):
        monkeypatch.setenv(arithmetic.VARIABLE, mode)
        assert on_gpus("auto", 2, 2) is used
        assert device_of("auto") == ("cuda" if used else "cpu")
        assert not on_gpus("cpu", 2, 2)
        assert device_of("cpu") == "cpu"


def test_encoders_on_the_way_are_files_beside_the_checkpoints_and_in_none_of_them(tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, "wholebody"), "wholebody")
    config, folder = config_of("wholebody", candidates=6), tmp_path / "run"
    folder.mkdir()
    train(config, volumes, HERE, InMemory(folder), lambda _: None)
    kept = {step: (folder / candidate_file(step)).read_bytes() for step in (1, 2, 3, 4, 5)}
    assert len(set(kept.values())) == 5
    assert not (folder / candidate_file(6)).exists(), "the last one is the encoder itself"
    one, all_of_them = (train_size(tmp_path / str(n), volumes, n) for n in (1, 6))
    assert all_of_them == one, "checkpoints are no larger with more candidates"
    (folder / candidate_file(3)).unlink()
    train(config, volumes, HERE, InMemory(folder, read_state(folder / "2.pt")), lambda _: None)
    assert {step: (folder / candidate_file(step)).read_bytes() for step in kept} == kept, (
        "made again, to the same bytes"
    )


def test_an_encoder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(UserError, match=r"encoder of step 7: cannot be written to .*candidates: .*; make room and"):
            write_candidate(tmp_path, 7, {"weights": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / candidate_file(7)).exists()


def train_size(folder: Path, volumes: tuple[Path, ...], candidates: int) -> int:
    folder.mkdir()
    train(config_of("wholebody", candidates=candidates), volumes, HERE, InMemory(folder), lambda _: None)
    return (folder / "6.pt").stat().st_size


@pytest.mark.parametrize(
    ("device", "wanted", "found", "answer"),
    [("auto", 2, 2, True), ("auto", 2, 1, False), ("auto", 1, 0, False), ("cpu", 1, 8, False), ("cuda", 2, 4, True)],
)
def test_gpus_are_taken_where_they_are_enough_and_wanted(device: str, wanted: int, found: int, answer: bool) -> None:
    assert on_gpus(device, wanted, found) is answer


NONE_HERE = r"pretrain.device 'cuda': 0 GPUs found, 1 wanted, one for each worker; lower pretrain.workers, or allow"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_a_gpu_that_is_asked_for_and_not_there_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_project(tmp_path, "wholebody", device="cuda"))
    with pytest.raises(UserError, match=NONE_HERE):
        stage.pretrain("wholebody")
    assert not Path("data/wholebody/pretrain").exists()


def test_fewer_gpus_than_workers_end_the_run_or_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of one GPU, which cannot exist here, is said to be there; nothing is trained."""
    monkeypatch.setattr(ray_driver, "ray_cluster", lambda workers, apart: nullcontext())
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    asked: list[Any] = []

    def fit(config: Any, job: Any, folder: Path, gpus: bool, progress: Any) -> Any:
        asked.append(gpus)
        raise UserError("trained no further")

    monkeypatch.setattr(ray_driver, "_fit", fit)
    lines: list[str] = []
    with pytest.raises(UserError, match="1 GPUs found, 2 wanted"):
        ray_driver.train_with_ray(config_of("wholebody", workers=2, device="cuda"), (), tmp_path / "a", lines.append)
    assert not asked
    with pytest.raises(UserError, match="trained no further"):
        ray_driver.train_with_ray(config_of("wholebody", workers=2, device="auto"), (), tmp_path / "b", lines.append)
    assert asked == [False]
    assert lines == ["device auto: 1 GPUs for 2 workers: training on CPUs"]


def test_the_outputs_name_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_project(tmp_path, "wholebody", steps=2, candidates=2))
    stage.pretrain("wholebody")
    assert read_json(Path("data/wholebody/pretrain/summary.json"))["device"] == "cpu"
    history = pd.read_csv("data/wholebody/pretrain/history.csv")
    assert history["gpus"].tolist() == [0, 0]
    assert (Path("data/wholebody/pretrain/encoder") / candidate_file(1)).is_file()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("spacing_mm", [1.0, 1.0, 1.0], r"spacing 3, 1, 1 mm is not allowed: \[1\.0, 1\.0, 1\.0\]"),
        ("orientation", "RAS", "orientation SPL is not allowed: RAS"),
    ],
)
def test_volumes_on_another_grid_end_the_run_before_its_first_step(
    key: str, value: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = block("wholebody")["input"] | {key: value}
    monkeypatch.chdir(write_project(tmp_path, "wholebody", input=json.loads(json.dumps(changed))))
    monkeypatch.setattr(stage, "train_here", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match=said):
        stage.pretrain("wholebody")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_handed_on(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_project(tmp_path, "wholebody", steps=1))

    def last_step_overflows(*arguments: Any) -> Any:
        state = train_here(*arguments)
        weights = next(v for k, v in state["objective"].items() if k.startswith("encoder.") and v.is_floating_point())
        weights.view(-1)[0] = wrong
        return state

    monkeypatch.setattr(stage, "train_here", last_step_overflows)
    with pytest.raises(UserError, match=r"weights are not finite after step 1; try a lower wholebody\.pretrain\."):
        stage.pretrain("wholebody")
    assert not Path("data/wholebody/pretrain").exists()


class Fails:
    """A trainer of Ray's that loses its workers; each attempt but the last writes a checkpoint."""

    def __init__(self, folder: Path, attempts: int) -> None:
        self.folder, self.attempts, self.made = folder, attempts, 0

    def __call__(self, *arguments: Any, **named: Any) -> Fails:
        return self

    def fit(self) -> str:
        self.made += 1
        if self.made > self.attempts + 1:
            raise AssertionError("tried again without progress")
        if self.made <= self.attempts:
            place = self.folder / f"checkpoint_{self.made:09d}"
            place.mkdir(parents=True)
            (place / ray_driver.STATE_FILE).touch()
        raise ray.train.WorkerGroupError("lost", {})


def test_failures_count_since_the_last_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts over a whole run, which ended one of weeks; here a run ends where an attempt got no farther."""
    trainer = Fails(tmp_path, attempts=3)
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", trainer)
    lines: list[str] = []
    with pytest.raises(ray.train.WorkerGroupError):
        ray_driver._fit(config_of("wholebody", workers=1), {}, tmp_path, False, lines.append)
    assert trainer.made == 4
    assert len(lines) == 3
