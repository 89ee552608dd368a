"""Encoders of others beside ours, on the same cases: block ``<line>.peers`` of the parameters."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from components.errors import UserError
from components.figures.resampling import paired
from components.files import sha256_file
from components.models.config import InputConfig
from components.models.embed import WEIGHTS, Embedder
from components.settings import StageConfig
from components.sources.roots import root_of
from components.tasks.features import Method, Peer, peer_method
from components.tasks.scores import DIGITS, ENCODER, PEER, Score

NAMED = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Found = dict[str, dict[str, dict[str, dict[str, float]]]]


class PeerConfig(StageConfig):
    """An encoder that stands beside ours.

    Attributes:
        release: SHA-256 of the ``encoder.safetensors`` of a release, or of imported weights; the folder that holds it
            and its ``encoder.json`` is this machine's, root ``peer_<name>`` of the line. It sees what the line stores.
        function: ``module:name`` of a function without arguments that returns an encoder: an object with
            ``size_vox``, ``embed_crops`` (int16 HU (N, *size_vox) on the line's grid to (N, dimension)) and
            ``embed_volume`` (a volume of :mod:`components.ct.store` to (dimension,)), as
            :class:`components.models.embed.Embedder` has them.
    """

    release: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None

    @model_validator(mode="after")
    def _one(self) -> PeerConfig:
        if (self.release is None) == (self.function is None):
            raise ValueError("either release or function")
        return self


class PeersConfig(StageConfig):
    """Attributes:
    encoders: by name.
    """

    encoders: dict[NAMED, PeerConfig]


def peers_of(line: str, config: PeersConfig, seen: InputConfig, device: str) -> dict[str, Callable[[], Peer]]:
    """Method to a peer, each made when it is asked for.

    Args:
        line: model line.
        config: which there are.
        seen: what the line's encoder sees: its volumes are on that grid.
        device: as ``evaluate.device``.

    Raises:
        UserError: where one is made that is not on this machine, is another than the pinned one, or sees another grid.
    """

    def make(name: str, of: PeerConfig) -> Peer:
        return _of_release(line, name, of.release, seen, device) if of.release else _of_function(line, name, of)

    return {PEER + name: partial(make, name, of) for name, of in config.encoders.items()}


def peer_methods(line: str, config: PeersConfig, seen: InputConfig, device: str) -> dict[str, Method]:
    """Method to what turns CT into a peer's vectors; arguments and errors as of :func:`peers_of`."""
    return {name: peer_method(make()) for name, make in peers_of(line, config, seen, device).items()}


def _of_release(line: str, name: str, digest: str, seen: InputConfig, device: str) -> Peer:
    folder = root_of(PEER + name, line)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{line}.peers.encoders.{name}: {folder} holds no {WEIGHTS}; a release's folder does")
    found = sha256_file(folder / WEIGHTS)
    if found != digest:
        raise UserError(f"{line}.peers.encoders.{name}.release: {WEIGHTS} has {found[:12]}, pinned is {digest[:12]}")
    embedder = Embedder.load(folder, device)
    theirs = embedder.config.input
    for key in ("sees", "orientation", "spacing_mm"):
        if getattr(theirs, key) != getattr(seen, key):
            raise UserError(
                f"{line}.peers.encoders.{name}: it has {key} {getattr(theirs, key)}, the line {getattr(seen, key)}: "
                "a peer sees what the line stores; evaluate it in a line of its own, with pretrain.start"
            )
    return Peer(theirs.size_vox, embedder.embed_crops, embedder.embed_volume, embedder)


def _of_function(line: str, name: str, of: PeerConfig) -> Peer:
    assert of.function is not None
    where, (module, _, function) = f"{line}.peers.encoders.{name}.function", of.function.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{where}: {of.function!r} cannot be imported: {_told(error)}") from error
    try:
        peer: Any = make()
    except Exception as error:
        raise UserError(f"{where}: {of.function!r} raised {_told(error)}") from error
    lacking = [part for part in ("size_vox", "embed_crops", "embed_volume") if not hasattr(peer, part)]
    if lacking:
        raise UserError(f"{where}: what {of.function!r} returns has no {lacking[0]}; see components/evaluate/peers.py")
    size = peer.size_vox
    if not (isinstance(size, (tuple, list)) and len(size) == 3 and all(type(n) is int and n > 0 for n in size)):
        raise UserError(f"{where}: size_vox {size!r} is not allowed: three numbers of voxels, 1 or more each")

    dimensions: list[int] = []  # of its first vector, which holds for all

    def embedded(method: str, given: Any, count: tuple[int, ...], what: str) -> npt.NDArray[np.floating]:
        try:
            vectors = np.asarray(getattr(peer, method)(given))
        except Exception as error:
            raise UserError(f"{where}: {method} raised {_told(error)}") from error
        numbers = vectors.dtype.kind in "fiu" and bool(np.isfinite(vectors).all())
        known = (*count, *(dimensions or vectors.shape[-1:]))
        if not numbers or not vectors.size or vectors.ndim != len(count) + 1 or vectors.shape != known:
            allowed = ", ".join([*map(str, (*count, *dimensions)), *([] if dimensions else ["dimension"])])
            told = f"{method} gave {vectors.dtype} {vectors.shape} of {what}"
            raise UserError(f"{where}: {told}; allowed: finite numbers, ({allowed}{'' if count else ','})")
        dimensions[:] = vectors.shape[-1:]
        return vectors

    return Peer(
        (size[0], size[1], size[2]),
        lambda hu: embedded("embed_crops", hu, (len(hu),), f"{len(hu)} crops"),
        lambda volume: embedded("embed_volume", volume, (), "a scan"),
    )


def _told(error: Exception) -> str:
    """An error of the user's code in a line; its traceback stays behind it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def beside_peers(scores: Sequence[Score]) -> Found:
    """Our encoder less each peer: task, peer, figure, then ``value`` of the peer and ``difference`` with its paired
    95 % limits over patients."""
    ours: Mapping[tuple[str, str], Score] = {
        (score.task, score.figure): score for score in scores if score.method == ENCODER
    }
    found: Found = {}
    for score in scores:
        if score.method.startswith(PEER) and (score.task, score.figure) in ours:
            estimate = paired(ours[score.task, score.figure].replicates, score.replicates, score.sample)
            low, high = estimate.interval()
            numbers = {"value": score.value, "difference": estimate.value, "low": low, "high": high}
            of_peer = found.setdefault(score.task, {}).setdefault(score.method.removeprefix(PEER), {})
            of_peer[score.figure] = {key: round(float(number), DIGITS) for key, number in numbers.items()}
    return found
