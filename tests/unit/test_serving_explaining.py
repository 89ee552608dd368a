"""A map says of each block by how much the head's own answer falls without it, and lies where the block does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.special import logit

from components.ct.store import voxel_of
from components.models.build import build_encoder
from components.models.config import InputConfig, SegResConfig
from components.models.embed import EmbedConfig, Embedder
from components.models.intensity import apply_windows
from components.tasks.saliency_maps import Blocks
from serving.embedding import ServedBundle, read_scan, volume_vector
from serving.explaining import Explained, Wanted, log_odds_of, saliency_file
from serving.limits import Limits
from serving.sniff import InputError
from tests.unit.test_serving_classifying import release
from tests.unit.test_serving_embedding import body

POINT = (-219.0, -131.0, 90.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ServedBundle:
    return release(tmp_path_factory.mktemp("r") / "wholebody", findings__ich="scan", organs="point")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return body(tmp_path_factory.mktemp("s") / "trunk.nii", (170.0, 110.0), 2.0)


def score_of(bundle: ServedBundle, part: str, vector: np.ndarray) -> float:
    """Log odds of the positive class, by the head's own probabilities."""
    return float(logit(bundle.heads[part].probabilities(vector[None])[0, 1]))


def at(found: Explained, point_mm: np.ndarray) -> float:
    voxel = tuple(np.rint(voxel_of(found.affine, point_mm)).astype(int))
    return float(found.values[voxel])


def test_a_block_of_a_crop_costs_what_the_head_says_without_it(bundle: ServedBundle, scan: Path) -> None:
    found = saliency_file(scan, bundle, Wanted("organs", point=POINT, blocks=2))
    volume, seen = read_scan(scan, bundle, Limits()).volume, bundle.embedder.config.input
    whole = bundle.embedder.embed_points(volume, [POINT])[0]
    assert found.content["log_odds"] == pytest.approx(score_of(bundle, "organs", whole), abs=1e-4)
    first = np.floor(voxel_of(volume.affine, POINT) + 0.5).astype(int) - np.array(seen.size_vox) // 2
    crop = volume.hu[tuple(slice(a, a + n) for a, n in zip(first, seen.size_vox, strict=True))]
    shown = apply_windows(torch.from_numpy(crop[None].copy()), seen.windows)
    blocks = Blocks.of(seen.size_vox, (2, 2, 2))
    values = []
    for number, middle in enumerate(blocks.centres()):
        without = torch.where(torch.from_numpy(blocks.number == number), shown.mean(), shown)
        with torch.inference_mode():
            vector = bundle.embedder.vectors(without)[0].numpy()
        fall = found.content["log_odds"] - score_of(bundle, "organs", vector)
        point = volume.affine[:3, :3] @ (first + middle) + volume.affine[:3, 3]
        assert at(found, point) == pytest.approx(fall, abs=1e-4), number
        values.append(at(found, point))
    highest = found.content["highest"]
    assert highest["value"] == pytest.approx(max(values), abs=1e-5)
    best = first + blocks.centres()[int(np.argmax(values))]
    assert highest["point_mm"] == pytest.approx(volume.affine[:3, :3] @ best + volume.affine[:3, 3], abs=0.01)
    assert found.content["lowest"]["value"] == pytest.approx(min(values), abs=1e-5)
    corner = volume.affine[:3, :3] @ (first - 4) + volume.affine[:3, 3]
    assert at(found, corner) == 0, "what the head does not see has no part in its answer"


def test_gradients_add_up_to_the_answer_less_that_of_the_neutral_value(bundle: ServedBundle, scan: Path) -> None:
    wanted = Wanted("organs", point=POINT, way="gradients")
    found = saliency_file(scan, bundle, wanted)
    volume = read_scan(scan, bundle, Limits()).volume
    shown = bundle.embedder.seen(volume, POINT)
    with torch.inference_mode():
        neutral = bundle.embedder.vectors(torch.full_like(shown, float(shown.mean())))[0].numpy()
    difference = found.content["log_odds"] - score_of(bundle, "organs", neutral)
    ratio = abs(np.linalg.det(found.affine[:3, :3]) / np.linalg.det(volume.affine[:3, :3]))
    assert float(found.values.sum()) * ratio == pytest.approx(difference, rel=0.1, abs=0.02)


def test_of_a_mean_over_places_each_is_left_out_in_turn(bundle: ServedBundle, scan: Path) -> None:
    found = saliency_file(scan, bundle, Wanted("findings/ich"))
    volume = read_scan(scan, bundle, Limits()).volume
    places = bundle.embedder.embed_grid(volume)
    whole = score_of(bundle, "findings/ich", places.vectors.mean(axis=0))
    falls = []
    for number, point in enumerate(places.points_mm):
        rest = np.delete(places.vectors, number, axis=0).mean(axis=0)
        falls.append(whole - score_of(bundle, "findings/ich", rest))
        voxel = np.rint(voxel_of(found.affine, point)).astype(int)
        if ((voxel >= 0) & (voxel < found.values.shape)).all():
            assert at(found, point) == pytest.approx(falls[-1], abs=1e-4)
    assert found.content["highest"]["value"] == pytest.approx(max(falls), abs=1e-4)
    assert found.content["way"] == "occlusion"
    with pytest.raises(
        InputError, match=r"^way 'gradients' is not allowed: this head sees the mean over places"
    ) as refused:
        saliency_file(scan, bundle, Wanted("findings/ich", way="gradients"))
    assert refused.value.status == 400


def test_an_encoder_that_sees_scans_is_explained_over_the_whole_of_one(bundle: ServedBundle, scan: Path) -> None:
    config = SegResConfig(kind="segres", init_filters=4, blocks_down=(1, 1, 1))
    view = replace_input(bundle.embedder.config.input, (16, 16, 16))
    encoder = build_encoder(config, view, seed=1)
    seeing = replace(bundle, embedder=Embedder(encoder, EmbedConfig(encoder=config, input=view), "cpu"))
    found = saliency_file(scan, seeing, Wanted("findings/ich", blocks=2))
    volume = read_scan(scan, seeing, Limits()).volume
    assert found.content["log_odds"] == pytest.approx(
        score_of(seeing, "findings/ich", volume_vector(read_scan(scan, seeing, Limits()), seeing)), abs=1e-4
    )
    shown = seeing.embedder.seen(volume)
    gone = shown.clone()
    gone[:, :, :8, 8:, :8] = shown.mean()
    with torch.inference_mode():
        fall = found.content["log_odds"] - score_of(seeing, "findings/ich", seeing.embedder.vectors(gone)[0].numpy())
    middle = np.array(volume.hu.shape) * [0.25, 0.75, 0.25] - 0.5
    assert at(found, volume.affine[:3, :3] @ middle + volume.affine[:3, 3]) == pytest.approx(fall, abs=1e-4)


def replace_input(view: InputConfig, size: tuple[int, int, int]) -> InputConfig:
    return view.model_copy(update={"sees": "scan", "size_vox": size})


def test_a_map_of_nothing_but_rounding_says_so(bundle: ServedBundle, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((90, 90, 60), 40, np.int16), np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "even.nii")
    found = saliency_file(tmp_path / "even.nii", bundle, Wanted("organs", point=(135.0, 135.0, 90.0)))
    assert abs(found.content["highest"]["value"]) < 0.001
    assert "Nothing that was looked at changes the log odds by 0.001: ignore the places." in found.content["limits"]


@pytest.mark.parametrize("name", ["absent", "present"])
def test_the_log_odds_are_those_of_the_calibrated_answer(bundle: ServedBundle, name: str) -> None:
    head = bundle.heads["organs"]
    vectors = np.random.default_rng(0).normal(size=(5, 16))
    expected = logit(head.probabilities(vectors)[:, head.description.classes.index(name)])
    assert log_odds_of(head, name)(torch.from_numpy(vectors)).tolist() == pytest.approx(expected.tolist(), abs=1e-9)


def test_what_cannot_be_explained_is_one_line(bundle: ServedBundle, scan: Path) -> None:
    for wanted, says, status in (
        (Wanted(), "several heads classify: head= one of findings/ich, organs", 400),
        (Wanted("lesions"), "head 'lesions' is not allowed: head= one of findings/ich, organs", 400),
        (Wanted("organs"), "head organs sees a point: send point_mm=R,A,S", 409),
        (Wanted("findings/ich", point=POINT), "point_mm is not allowed: head findings/ich sees the whole scan", 400),
        (Wanted("findings/ich", "maybe"), "of_class 'maybe' is not allowed: absent, present", 400),
        (Wanted("organs", point=(9000.0, 0.0, 0.0)), "point_mm 9000, 0, 0 is not in the scan", 422),
    ):
        with pytest.raises(InputError) as refused:
            saliency_file(scan, bundle, wanted)
        assert str(refused.value).startswith(says)
        assert refused.value.status == status
