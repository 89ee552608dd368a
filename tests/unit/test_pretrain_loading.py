"""What a step sees is a function of the seed, the step and the place in the batch, of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretrain_project import HERE, InMemory, config_of, volumes_of, write_project

from components.params import UserError
from components.pretrain.loading import batches, places, sample_order
from components.pretrain.loop import train
from components.pretrain.workers import World


def test_every_volume_is_seen_once_per_epoch_in_another_order_each() -> None:
    epochs = [[sample_order(1, 7, epoch * 7 + place) for place in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 1), (0, 4), (2, 2)])
def test_workers_and_parts_share_out_the_same_batches(workers: int, accumulate: int) -> None:
    config = config_of("wholebody", volumes_per_step=4, workers=workers, accumulate=accumulate, steps=5)
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
