"""Starting from weights: the file behind ``<line>.pretrain.start``, and what of a run begins with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from components.errors import UserError
from components.files import replacing, sha256_file
from components.models import hub
from components.models.build import build_encoder
from components.models.embed import DESCRIPTION, WEIGHTS, described
from components.models.weights import mismatches, parted, read_weights
from components.pretrain.config import PretrainConfig
from components.pretrain.start_config import ROOT, FileStart, HubStart, ReleaseStart
from components.settings import StageConfig, shown
from components.sources.roots import root_of

PLACED = "start.safetensors"  # in the run's folder, which all workers see


def located(line: str, start: FileStart | ReleaseStart | HubStart, fetch: bool) -> Path | None:
    """The file with the weights, of the digest that the parameters name.

    Args:
        line: model line.
        start: its block.
        fetch: whether the hub may be asked for what its cache has not got; else None comes of that.

    Raises:
        UserError: no such file, or another digest.
    """
    if isinstance(start, HubStart):
        path = hub.cached(start.repository, start.file, start.revision, start.sha256)
        if path is None and fetch:
            path = hub.fetched(start.repository, start.file, start.revision)
        if path is None:
            return None
    elif isinstance(start, ReleaseStart):
        path = root_of(ROOT, line) / start.release / WEIGHTS
    else:
        path = root_of(ROOT, line) / start.file
    where = f"params.yaml: {line}.pretrain.start"
    if not path.is_file():
        raise UserError(f"{where}: {start.told}: there is no file {path}")
    found = sha256_file(path)
    if found != start.sha256:
        raise UserError(
            f"{where}.sha256: {shown(start.sha256)} is not allowed: {start.told} has SHA-256 {found}; write that "
            "if these are the weights you mean"
        )
    return path


def checked(line: str, config: PretrainConfig, fetch: bool) -> Path | None:
    """As :func:`located`, of weights that fit the line's encoder. None without ``start`` too."""
    if config.start is None:
        return None
    path = located(line, config.start, fetch)
    if path is None:
        return None
    if isinstance(config.start, ReleaseStart):
        _require_alike(line, config, path.parent)
    own, _ = parted(read_weights(path))
    wrong = mismatches(own, build_encoder(config.encoder, config.input, config.seed).state_dict())
    if wrong:
        raise UserError(_does_not_fit(config, wrong))
    return path


def _does_not_fit(config: PretrainConfig, wrong: str) -> str:
    assert config.start is not None
    return (
        f"start: {config.start.told}: does not fit pretrain.encoder of kind {config.encoder.kind!r} with "
        f"{len(config.input.windows)} windows: {wrong}"
    )


def _require_alike(line: str, config: PretrainConfig, folder: Path) -> None:
    """Raise UserError where a release's encoder is not the line's. What it sees may change where training follows."""
    theirs = described(folder)
    pairs: list[tuple[str, StageConfig, StageConfig]] = [("encoder", theirs.encoder, config.encoder)]
    if config.steps == 0:
        pairs.append(("input", theirs.input, config.input))
    wrong = [
        f"{part}.{key} {shown(told)} is {shown(getattr(found, key, None))} there"
        for part, found, ours in pairs
        for key, told in ours.model_dump().items()
        if getattr(found, key, None) != told
    ]
    if wrong:
        raise UserError(
            f"params.yaml: {line}.pretrain: is not what {DESCRIPTION} of start {folder.name} says: {'; '.join(wrong)}"
        )


def placed_at(config: PretrainConfig, run: Path) -> Path | None:
    """Where :func:`placed` puts the weights of a run."""
    return None if config.start is None else run / PLACED


def placed(line: str, config: PretrainConfig, run: Path) -> Path | None:
    """The weights, checked, as a copy in the run's folder; None where the run starts from nothing. Raises UserError."""
    path = checked(line, config, fetch=True)
    if path is None:
        return None
    with replacing(run / PLACED) as temporary:
        shutil.copyfile(path, temporary)
    return run / PLACED
