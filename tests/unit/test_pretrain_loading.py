"""What a step sees is a function of the seed, the step and the place in the batch, of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretrain_project import HERE, InMemory, block, config_of, volumes_of, write_project

from components.ct.store import StoredVolume
from components.errors import UserError
from components.pretrain.checkpoints import read_state
from components.pretrain.loading import Samples, batches, places, sample_order
from components.pretrain.loop import train
from components.pretrain.views import CropViews, build_views
from components.pretrain.workers import World
from components.settings import ParamsError


def test_every_volume_is_seen_once_per_epoch_in_another_order_each() -> None:
    epochs = [[sample_order(1, 7, epoch * 7 + place) for place in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 1), (0, 4), (2, 2)])
def test_workers_and_parts_share_out_the_same_batches(workers: int, accumulate: int) -> None:
    painting = block("head")["objective"] | {"kind": "mae"}
    config = config_of(
        "head", objective=painting, volumes_per_step=4, workers=workers, accumulate=accumulate, steps=5
    )  # fmt: skip
    size = max(1, workers)
    shares = [list(places(config, World(rank, size, torch.device("cpu")), 2)) for rank in range(size)]
    assert all(len(share) == 3 * accumulate for share in shares)
    steps = [
        sorted(i for share in shares for part in share[n * accumulate :][:accumulate] for i in part) for n in range(3)
    ]
    assert steps == [list(range(4 * step, 4 * step + 4)) for step in (2, 3, 4)]


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_the_final_weights_do_not_depend_on_the_number_of_loader_processes(line: str, tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, line), line)
    states = [train(config_of(line, loaders=n), volumes, HERE, InMemory(tmp_path), lambda _: None) for n in (0, 2)]
    for state in states[1:]:
        assert state["history"] == states[0]["history"]
        for name, value in states[0]["objective"].items():
            assert torch.equal(value, state["objective"][name]), name


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_damaged_volume_is_named_in_its_place(loaders: int, tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, "head"), "head")
    volumes[0].write_bytes(b"not a volume")
    config = config_of("head", loaders=loaders)
    found = list(batches(config, volumes, HERE, 0))
    assert len(found) == config.steps
    assert {type(batch) for batch in found} == {str, dict}, "the others are read"
    with pytest.raises(UserError, match=f"{volumes[0].name}: cannot be read for training.*run preprocess again"):
        train(config, volumes, HERE, InMemory(tmp_path), lambda _: None)


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_damaged_volume_may_be_skipped_and_is_counted(loaders: int, tmp_path: Path) -> None:
    project = write_project(tmp_path, "head", unreadable="skip", loaders=loaders)
    volumes = volumes_of(project, "head")
    volumes[1].write_bytes(b"not a volume")
    config = config_of("head", unreadable="skip", loaders=loaders)
    lines: list[str] = []
    state = train(config, volumes, HERE, InMemory(tmp_path), lines.append)
    places_of_it = [n for n in range(12) if sample_order(config.seed, 4, n) == 1]
    assert state["skipped"][1] >= len(places_of_it) == 3
    assert state["skipped"].sum() == state["skipped"][1]
    assert sum("cannot be read: skipped" in line for line in lines) == 1
    assert any(f"{volumes[1]} cannot be read" in line for line in lines)
    resumed = train(config, volumes, HERE, InMemory(tmp_path, read_state(tmp_path / "4.pt")), lambda _: None)
    assert torch.equal(resumed["skipped"], state["skipped"])
    assert resumed["history"] == state["history"]


def test_where_no_volume_can_be_read_the_first_is_named(tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, "head"), "head")
    for path in volumes:
        path.write_bytes(b"not a volume")
    with pytest.raises(UserError, match="cannot be read for training"):
        train(config_of("head", unreadable="skip"), volumes, HERE, InMemory(tmp_path), lambda _: None)


def test_a_volume_whose_voxels_are_damaged_opens_and_counts_as_unreadable(tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, "wholebody", volumes=1), "wholebody")
    content = bytearray(volumes[0].read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = b"\xff" * (2 * len(content) // 3 - len(content) // 3)
    volumes[0].write_bytes(content)
    assert StoredVolume(volumes[0]).shape
    config = config_of("wholebody")
    assert "cannot be read for training" in str(Samples(config, build_views(config), volumes)[0])


@pytest.mark.parametrize("unreadable", ["stop", "skip"])
def test_a_mistake_in_a_view_is_not_blamed_on_the_volume(unreadable: str, tmp_path: Path) -> None:
    volumes = volumes_of(write_project(tmp_path, "wholebody", volumes=1), "wholebody")
    config = config_of("wholebody", unreadable=unreadable)
    reversed_scale = config.objective.views.model_copy(update={"scale": (1.0, 0.4)})  # which parsing refuses
    with pytest.raises((ValueError, OverflowError)):
        Samples(config, CropViews(config.input, reversed_scale), volumes)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", ["two", -1, [2, 1], [0, 2], [1, 2, 3], True])
def test_a_number_of_workers_that_is_not_allowed_is_named_in_one_line(workers: object) -> None:
    with pytest.raises(ParamsError) as caught:
        config_of("wholebody", workers=workers)
    (line,) = str(caught.value).splitlines()
    assert "wholebody.pretrain.workers: " in line
    assert line.endswith("is not allowed: a number from 0 on, or [least, most] from 1 on")


def test_each_number_of_workers_that_an_elastic_run_may_have_must_share_out_the_batch() -> None:
    assert config_of("wholebody", workers=[1, 2]).most_workers == 2
    with pytest.raises(ParamsError, match="volumes_per_step 2 must be a multiple of workers x accumulate, 3 x 1"):
        config_of("wholebody", workers=[1, 3])
