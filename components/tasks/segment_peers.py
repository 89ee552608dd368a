"""Peers of kind ``segment``: those whose levels a decoder can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from components.tasks.features import Peer
from components.tasks.scores import PEER

if TYPE_CHECKING:
    from components.models.embed import Embedder
    from components.models.segmenter import SegmenterConfig


def with_levels(
    peers: Mapping[str, Callable[[], Peer]], config: SegmenterConfig
) -> tuple[dict[str, Embedder], str]:  # fmt: skip
    """Method to those that have levels for such a decoder, and what to say of all others.

    Args:
        peers: by method, see :class:`components.tasks.interface.Question`.
        config: of the decoder.
    """
    from components.models.segmenter import levels_lacking

    found: dict[str, Embedder] = {}
    told = []
    for method, make in sorted(peers.items()):
        embedder = make().embedder
        lacking = "a function returns vectors, and no levels"
        if embedder is not None:
            lacking = levels_lacking(embedder.config, config)
        if embedder is not None and not lacking:
            found[method] = embedder
        else:
            told.append(f"Without peer {method.removeprefix(PEER)}: {lacking}.")
    return found, " ".join(told)
