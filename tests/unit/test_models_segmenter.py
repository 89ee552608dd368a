"""Parts of a segmenter, each by itself: sliding windows, the decoder, what becomes of its labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference

from components.models import decoder
from components.models.segmenter import largest_pieces
from components.models.sliding import sliding_window, window_starts


@pytest.mark.parametrize(("size", "starts"), [(16, [0]), (64, [0, 24, 32]), (48, [0, 16])])
def test_windows_reach_the_end_on_the_networks_grid(size: int, starts: list[int]) -> None:
    assert window_starts(size, 32, 0.25, 8) == starts


def test_windows_are_weighed_as_monais() -> None:
    """Of a network that answers for each voxel by itself, windows leave nothing behind."""
    image = torch.rand(1, 1, 16, 24, 32)

    def network(window: torch.Tensor) -> torch.Tensor:
        return torch.cat([window, 1 - window], dim=1)

    everywhere = torch.ones(image.shape[2:], dtype=torch.bool)
    ours = sliding_window(image, (8, 8, 16), 0.5, 1, 4, network, everywhere)
    theirs = sliding_window_inference(image, (8, 8, 16), 1, network, overlap=0.5, mode="gaussian")
    torch.testing.assert_close(ours[None], theirs, atol=1e-6, rtol=0)
    nothing = everywhere.clone()
    nothing[:, 8:] = False
    part = sliding_window(image, (8, 8, 16), 0.0, 1, 4, network, nothing)
    assert (part[0, :, 8:] == 1).all()
    assert (part[1, :, 8:] == 0).all()
    torch.testing.assert_close(part[:, :, :8], ours[:, :, :8])


def test_labels_are_interpolated_where_levels_lie() -> None:
    """A ramp over the grid of strided convolutions comes back as a ramp over the volume's voxels."""
    grids = decoder.Grids((1, 2, 2), 1, 3)
    logits = torch.zeros(2, 3, 4, 5)
    logits[1] = torch.from_numpy(grids.centres(2, 5)).float() - 8.4
    found = decoder.enlarged(logits, grids, (6, 16, 20))
    np.testing.assert_array_equal(found[0, 0], (np.clip(np.arange(20), 0.5, 16.5) > 8.4).astype(np.uint8))


def test_of_each_structure_the_largest_piece_is_kept() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[0, 0, :4], labels[5, 5, :2], labels[3, 3, 3] = 1, 1, 2
    expected = labels.copy()
    expected[5, 5] = 0
    np.testing.assert_array_equal(largest_pieces(labels), expected)


def test_single_voxels_are_answered_as_the_whole_is() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(1, 4 * 2**number, *(n // 2**number for n in (8, 12, 16))) for number in range(3)]
    network = decoder.Decoder([4, 8, 16], 6, 0.3, 3).eval()
    for number, lift in enumerate(network.lifts):
        lift.standardise([levels[number] * 3 + 1])
    whole = network(levels)[0].flatten(1).T
    voxels = network.of_voxels([level[0].flatten(1).T for level in decoder.at_finest(levels)])
    torch.testing.assert_close(voxels, whole, atol=1e-5, rtol=1e-5)
    assert {name for name, _ in network.named_parameters()} >= {"last.weight"}
