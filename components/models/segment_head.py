"""A decoder as a head of a release: what it segments, how well, and for what it must not be taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from components.models.embed import Embedder
from components.models.heads import (
    SEGMENT,
    check_fitted,
    check_shapes,
    head_folders,
    read_head_files,
    write_head_files,
)
from components.models.segmenter import Segmenter, SegmenterConfig
from components.settings import StageConfig


class SegmentDescription(StageConfig):
    """``head.json`` of a decoder.

    Attributes:
        format: version of this layout.
        kind, task, part: as of a head that classifies.
        structures: in the order of their values in a label map, from 1.
        segmenter: how a scan is seen, and the decoder's shape.
        orientation, spacing_mm: grid on which the encoder sees a scan, and on which the labels come out.
        encoder: hex SHA-256 of the weights that it was fitted on.
        figures: on test scans: figure to ``value``, ``low``, ``high`` and what stands beside it (untrained encoders).
        dice: structure to its mean Dice over the test scans.
        patients: of ``train`` and of ``test``.
        limits: one sentence each.
    """

    format: Literal[1]
    kind: Literal["segment"]
    task: str
    part: str
    structures: Annotated[tuple[str, ...], Field(min_length=1, max_length=250)]
    segmenter: SegmenterConfig
    orientation: str
    spacing_mm: tuple[float, float, float]
    encoder: str
    figures: dict[str, dict[str, float]]
    dice: dict[str, float]
    patients: dict[str, int]
    limits: tuple[str, ...]


@dataclass(frozen=True)
class SegmentHead:
    """A decoder's weights, by their names in :class:`components.models.decoder.Decoder`, and its description."""

    description: SegmentDescription
    tensors: dict[str, npt.NDArray[np.floating]]

    def write(self, folder: Path) -> None:
        """Write both files; equal heads give equal bytes."""
        write_head_files(folder, self.tensors, self.description)

    @classmethod
    def read(cls, folder: Path) -> SegmentHead:
        """Raises UserError where a file is missing or not readable."""
        return cls(*read_head_files(folder, SegmentDescription))

    @classmethod
    def of(cls, segmenter: Segmenter, description: SegmentDescription) -> SegmentHead:
        """The decoder of a segmenter."""
        state = segmenter.decoder.state_dict()
        return cls(description, {name: tensor.detach().cpu().numpy() for name, tensor in state.items()})

    def on(self, embedder: Embedder, where: Path) -> Segmenter:
        """The decoder on its encoder, ready.

        Raises:
            UserError: the weights are not those that the description tells of; ``where`` names the head.
        """
        with torch.random.fork_rng(devices=[]):
            found = Segmenter(
                embedder.encoder, embedder.config, self.description.segmenter, len(self.description.structures) + 1
            )
        wanted = {name: tuple(tensor.shape) for name, tensor in found.decoder.state_dict().items()}
        check_shapes(where, self.tensors, wanted)
        found.decoder.load_state_dict({name: torch.from_numpy(of) for name, of in self.tensors.items()})
        found.decoder.eval()
        return found


def load_segment_heads(bundle: Path) -> dict[str, SegmentHead]:
    """The heads of a release folder that segment, by part, sorted; empty where it has none.

    Raises:
        UserError: a head that is not whole, or was not fitted on the release's encoder.
    """
    heads = {part: SegmentHead.read(folder) for part, folder in head_folders(bundle, SEGMENT).items()}
    for part, head in heads.items():
        check_fitted(bundle, part, head.description.part, head.description.encoder)
    return heads
