"""A decoder on an encoder's levels: the structures of a whole scan, and their file in a release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from components.ct.store import AIR_HU, Int16Array
from components.errors import UserError
from components.models.config import SegResConfig
from components.models.decoder import Decoder, Grids, Triple, UInt8Array, enlarged
from components.models.embed import EmbedConfig
from components.models.intensity import BODY_HU, apply_windows
from components.models.sliding import sliding_window
from components.settings import StageConfig

Count = Annotated[int, Field(ge=1, le=64)]
Side = Annotated[int, Field(ge=16, le=1024)]


class SegmenterConfig(StageConfig):
    """How a scan is seen, and the decoder's shape.

    Attributes:
        averaged: voxels that are averaged to one before the encoder sees them: wider context for less work.
        finest: level of the encoder at which the decoder ends, 0 the finest; labels are interpolated from there.
        width: hidden channels.
        window_vox: scans larger than that, after averaging, are seen window by window.
        overlap: of neighbouring windows, as a share of their sides.
        one_piece: whether of each structure only the largest piece is kept; not of lesions, of which there may be many.
    """

    averaged: tuple[Count, Count, Count]
    finest: Annotated[int, Field(ge=0, le=6)]
    width: Annotated[int, Field(ge=4, le=512)]
    window_vox: tuple[Side, Side, Side]
    overlap: Annotated[float, Field(ge=0, le=0.75)]
    one_piece: bool


@dataclass(frozen=True)
class Image:
    """A volume as the encoder sees it: averaged, windowed, filled up with air to a multiple of the coarsest voxel.

    Attributes:
        values: (1, C, D, H, W).
        body: (D, H, W), what is denser than air and lung.
    """

    values: Tensor
    body: Tensor


def grids_of(embed: EmbedConfig, config: SegmenterConfig) -> Grids:
    """Raises UserError where the encoder has no such levels."""
    if lacking := levels_lacking(embed, config):
        raise UserError(f"segment: {lacking}")
    assert isinstance(embed.encoder, SegResConfig)
    return Grids(config.averaged, config.finest, len(embed.encoder.blocks_down))


def levels_lacking(embed: EmbedConfig, config: SegmenterConfig) -> str:
    """Why a decoder cannot be trained on an encoder's levels; empty where it can."""
    if not isinstance(embed.encoder, SegResConfig):
        return f"encoder {embed.encoder.kind!r} is not allowed: segres"
    count = len(embed.encoder.blocks_down)
    if config.finest >= count:
        return f"decoder.finest {config.finest} is not allowed: below {count}, the encoder's levels"
    return ""


def image_of(hu: Int16Array, embed: EmbedConfig, grids: Grids) -> Image:
    """What the encoder sees of a volume."""
    wanted = [n * grids.coarsest * k for n, k in zip(grids.cells(hu.shape), grids.averaged, strict=True)]
    border = [(0, n - k) for n, k in zip(wanted, hu.shape, strict=True)]
    filled = torch.from_numpy(np.pad(hu, border, constant_values=AIR_HU)).float()
    averaged = functional.avg_pool3d(filled[None, None], grids.averaged)[:, 0]
    return Image(apply_windows(averaged, embed.input.windows), averaged[0] > BODY_HU)


class Segmenter:
    """A decoder on an encoder."""

    def __init__(
        self, encoder: Any, embed: EmbedConfig, config: SegmenterConfig, classes: int, dropout: float = 0.0
    ) -> None:
        """``classes``: background included. The decoder's weights are drawn from torch's own generator."""
        from components.models.segres import SegRes

        assert isinstance(encoder, SegRes)
        self.encoder, self.embed, self.config = encoder, embed, config
        self.grids = grids_of(embed, config)
        self.device = next(encoder.parameters()).device
        self.decoder = Decoder(encoder.widths[config.finest :], config.width, dropout, classes).to(self.device)

    @property
    def sees(self) -> tuple[Any, Grids]:
        """Windows and grids: of a volume, those of equal ones are given equal images."""
        return self.embed.input.windows, self.grids

    def levels(self, image: Tensor) -> list[Tensor]:
        """What the decoder sees of an input, without gradients."""
        with torch.no_grad():
            return self.encoder.levels(image.to(self.device))[self.config.finest :]

    def fits(self, image: Image) -> bool:
        """Whether an input is seen as a whole."""
        return all(n <= k for n, k in zip(image.values.shape[2:], self.config.window_vox, strict=True))

    def segment(self, hu: Int16Array) -> UInt8Array:
        """Classes of each voxel of a volume on the encoder's grid, uint8."""
        image = image_of(hu, self.embed, self.grids)
        return self.label(self.levels(image.values) if self.fits(image) else None, image, hu.shape)

    def label(self, levels: list[Tensor] | None, image: Image, shape: tuple[int, ...]) -> UInt8Array:
        """Classes on the volume's grid, uint8 ``shape``.

        Args:
            levels: of the whole image; None: it is seen window by window.
            image: as :func:`image_of` gives it.
            shape: of the volume.
        """
        with torch.no_grad():
            logits = self.decoder(levels)[0].cpu() if levels is not None else self._by_windows(image)
            found = enlarged(logits, self.grids, shape)
        return largest_pieces(found) if self.config.one_piece else found

    def _by_windows(self, image: Image) -> Tensor:
        def predict(window: Tensor) -> Tensor:
            logits: Tensor = self.decoder(self.levels(window))
            return logits.cpu()

        sides = _multiple(self.config.window_vox, self.grids.coarsest)
        fold, multiple = 2**self.config.finest, self.grids.coarsest
        return sliding_window(image.values, sides, self.config.overlap, fold, multiple, predict, image.body)


def largest_pieces(labels: UInt8Array) -> UInt8Array:
    """Of each label its largest piece, of voxels that share a face; the first of equals. All others become 0."""
    kept = np.zeros_like(labels)
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            pieces, _ = ndimage.label(labels[box] == value)
            kept[box][pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())] = value
    return kept


def _multiple(sides: Triple, of: int) -> Triple:
    a, b, c = (max(of, side // of * of) for side in sides)
    return a, b, c
