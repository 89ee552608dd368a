"""The embedder: same vector every time, from file or memory, and clear words for what it does not take."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_project import AFFINES, block, volume

from components.ct.store import StoredVolume, Volume, write_volume
from components.errors import UserError
from components.models import embed
from components.models.build import build_encoder
from components.models.embed import (
    EmbedConfig,
    Embedder,
    batch_of,
    device_of,
    grid_starts,
    orientation_of,
    untrained_embedder,
)
from components.settings import parse


def embedder_of(line: str) -> Embedder:
    content = block(line)
    config = parse(EmbedConfig, {"encoder": content["encoder"], "input": content["input"]}, "embed")
    return Embedder.from_encoder(build_encoder(config.encoder, config.input, seed=1), config)


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_saved_and_loaded_gives_the_same_vectors_and_bytes(line: str, tmp_path: Path) -> None:
    embedder = embedder_of(line)
    embedder.save(tmp_path / "a")
    loaded = Embedder.load(tmp_path / "a")
    loaded.save(tmp_path / "b")
    for name in ("encoder.safetensors", "encoder.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert loaded.config == embedder.config
    vector = loaded.embed_volume(volume(line, 0))
    assert vector.shape == (embedder.dim,)
    assert vector.dtype == np.float32
    assert np.array_equal(vector, embedder.embed_volume(volume(line, 0)))


def test_stored_and_in_memory_volumes_give_equal_vectors(tmp_path: Path) -> None:
    embedder, memory = embedder_of("wholebody"), volume("wholebody", 2)
    write_volume(tmp_path / "v.b2nd", memory, {})
    stored = StoredVolume(tmp_path / "v.b2nd")
    points = [[-20.0, -20.0, 30.0], [-500.0, 0.0, 0.0]]
    assert np.array_equal(embedder.embed_points(stored, points), embedder.embed_points(memory, points))
    assert np.array_equal(embedder.embed_volume(stored), embedder.embed_volume(memory))


def test_a_point_is_the_centre_of_its_crop() -> None:
    embedder, hu = embedder_of("wholebody"), np.full((20, 40, 44), -1000, dtype=np.int16)
    hu[10, 20, 22] = 2000
    affine = AFFINES["wholebody"]
    point = affine[:3, :3] @ [10, 20, 22] + affine[:3, 3]
    moved = np.roll(hu, (3, -5, 4), axis=(0, 1, 2))
    at_moved = affine[:3, :3] @ [13, 15, 26] + affine[:3, 3]
    first = embedder.embed_points(Volume(hu, affine), [point])
    assert np.array_equal(first, embedder.embed_points(Volume(moved, affine), [at_moved]))
    assert not np.array_equal(first, embedder.embed_points(Volume(moved, affine), [point]))
    assert embedder.embed_points(Volume(hu, affine), np.zeros((0, 3))).shape == (0, embedder.dim)


def test_the_encoder_sees_the_point_in_the_middle_of_its_box() -> None:
    embedder, hu = embedder_of("wholebody"), np.full((20, 40, 44), -1000, dtype=np.int16)
    hu[3, 35, 22] = 2000  # near two borders: what lies outside is air
    seen: list[torch.Tensor] = []
    embedder.encoder.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    embedder.embed_points(Volume(hu, AFFINES["wholebody"]), [AFFINES["wholebody"][:3, :3] @ [3, 35, 22]])
    assert seen[0].shape == (1, 1, 8, 16, 16)
    assert (seen[0][0, 0] > 0.5).nonzero().tolist() == [[4, 8, 8]]


def test_the_places_of_a_grid_are_points_whose_mean_is_the_volumes_vector() -> None:
    embedder, source = embedder_of("wholebody"), volume("wholebody", 2)
    grid = embedder.embed_grid(source)
    assert grid.points_mm.shape == (len(grid.vectors), 3)
    assert len({tuple(point) for point in grid.points_mm}) == len(grid.vectors) > 1
    assert embedder.embed_points(source, grid.points_mm) == pytest.approx(grid.vectors, abs=1e-6)
    assert embedder.embed_volume(source) == pytest.approx(grid.vectors.mean(axis=0), abs=1e-6)


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_levels_end_in_the_map_that_the_vector_is_pooled_from(line: str) -> None:
    embedder, source = embedder_of(line), volume(line, 1)
    point = None if line == "head" else source.affine[:3, :3] @ [6, 20, 20] + source.affine[:3, 3]
    levels = embedder.levels(source, point)
    assert len(levels) == len(embedder.encoder.blocks if line == "head" else block(line)["encoder"]["blocks_down"])
    pooled = levels[-1].mean(axis=(1, 2, 3))
    if line == "head":
        assert {level.shape for level in levels} == {levels[-1].shape}
        assert embedder.embed_volume(source)[-len(pooled) :] == pytest.approx(pooled, abs=1e-5)
    else:
        assert [level.shape[0] for level in levels] == [levels[0].shape[0] * 2**n for n in range(len(levels))]
        assert embedder.embed_points(source, [point])[0] == pytest.approx(pooled, abs=1e-5)
    with pytest.raises(UserError, match="for this encoder sees a"):
        embedder.levels(source, [0.0, 0.0, 0.0] if point is None else None)


def test_where_a_gpu_is_short_of_memory_fewer_crops_go_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, crops = embedder_of("wholebody"), np.zeros((7, 8, 16, 16), dtype=np.int16)
    crops += np.arange(7, dtype=np.int16)[:, None, None, None] * 100
    expected, encode, seen = embedder.embed_crops(crops), embedder.encoder.forward, []

    def short(x_BCDHW: torch.Tensor) -> torch.Tensor:
        seen.append(len(x_BCDHW))
        if len(x_BCDHW) > most:
            raise torch.OutOfMemoryError
        return encode(x_BCDHW)

    most = 4
    monkeypatch.setattr(embedder.encoder, "forward", short)
    monkeypatch.setattr(embed, "BATCH", 8)
    assert embedder.embed_crops(crops) == pytest.approx(expected, abs=1e-6)
    assert seen == [7, 4, 3]
    most = 0
    with pytest.raises(UserError, match="not enough memory free for one crop"):
        embedder.embed_crops(crops)


def test_an_untrained_embedder_has_the_same_shape_and_other_weights() -> None:
    embedder = embedder_of("head")
    embedders = [untrained_embedder(embedder.config, seed) for seed in (5, 5, 6)]
    first, again, other = (one.embed_volume(volume("head", 0)) for one in embedders)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (embedder.dim,)


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    embedder_of("head").embed_volume(volume("head", 0))
    assert torch.get_num_threads() == before


def test_what_does_not_fit_is_refused_with_its_value() -> None:
    embedder, good = embedder_of("wholebody"), volume("wholebody", 0)
    with pytest.raises(UserError, match="spacing"):
        embedder.embed_volume(Volume(good.hu, np.diag([1.0, 1, 1, 1])))
    with pytest.raises(UserError, match="orientation RAS"):
        embedder.embed_volume(Volume(good.hu, np.diag([3.0, 1, 1, 1])))
    with pytest.raises(UserError, match="enough body"):
        embedder.embed_volume(Volume(np.full((20, 40, 44), -1000, dtype=np.int16), good.affine))
    with pytest.raises(UserError, match="points"):
        embedder.embed_points(good, [[1.0, 2.0]])
    for point in ([1.0, 2.0], [[1.0, 2.0, 3.0]] * 2, [1.0, 2.0, float("nan")], "here"):
        with pytest.raises(UserError, match="levels: points"):
            embedder.levels(good, point)
    with pytest.raises(UserError, match=r"embed_crops: int16 \(2, 8, 8, 8\) is not allowed: .* \(N, 8, 16, 16\)"):
        embedder.embed_crops(np.zeros((2, 8, 8, 8), dtype=np.int16))
    with pytest.raises(UserError, match="whole scans"):
        embedder_of("head").embed_points(volume("head", 0), [[0.0, 0.0, 0.0]])


def test_missing_or_other_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.safetensors is missing"):
        Embedder.load(tmp_path)
    embedder_of("head").save(tmp_path)
    embedder_of("wholebody").save(tmp_path / "other")
    (tmp_path / "other" / "encoder.safetensors").rename(tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="does not fit"):
        Embedder.load(tmp_path)


def test_crops_at_once_are_as_many_as_their_voxels_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is that of 2^20 voxels, whatever the crop; what a crop's vector is does not depend on its neighbours."""
    assert [batch_of(size) for size in ((8, 32, 32), (32, 128, 128), (512, 512, 512))] == [32, 2, 1]
    embedder, source = embedder_of("wholebody"), volume("wholebody", 3)
    points = np.random.default_rng(0).uniform(-30, 0, (5, 3))
    together, seen = embedder.embed_points(source, points), []
    monkeypatch.setattr(embed, "BATCH_VOXELS", 2 * 8 * 16 * 16)
    embedder.encoder.register_forward_hook(lambda _, arguments, __: seen.append(len(arguments[0])))
    assert embedder.embed_points(source, points) == pytest.approx(together, abs=1e-6)
    assert seen == [2, 2, 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU on this machine")
def test_a_gpu_that_is_asked_for_and_not_there_is_one_line() -> None:
    assert [device_of(wanted) for wanted in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(UserError, match="device 'cuda': there is no GPU here; allow device auto or cpu"):
        device_of("cuda")


def test_grid_covers_the_volume_and_names_its_axes() -> None:
    starts = grid_starts((20, 40, 16), (8, 16, 16))
    assert starts[0] == (-2, -4, 0)
    assert len(starts) == 3 * 3 * 1
    assert orientation_of(AFFINES["wholebody"]) == "SPL"
    assert orientation_of(np.eye(4)) == "RAS"
