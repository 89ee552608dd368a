"""The champion: the release, or the published weights, that later releases must not fall behind.

Its figures and its training set's data profile are tracked in ``infra/champions``, so that a fresh clone has them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from components import arithmetic
from components.bundle.manifest import Manifest, read_manifest
from components.bundle.signature import verify_release
from components.command import data_dir
from components.errors import UserError
from components.files import STATE, read_json, replacing, sha256_file, write_json
from components.gate.champion import CHAMPIONS, COMPARISON
from components.settings import load_part, load_stage, parse, reproducible, shown
from flows.lines import add_line
from flows.lock import checkout_lock
from flows.recipes import load_recipe, names, recipe_file


def _file(line: str) -> Path:
    return CHAMPIONS / f"{line}.json"


def promote(line: str) -> str:
    """Make the bundle in ``releases/<line>`` the champion. Raises UserError where there is none, or it is damaged."""
    folder = Path("releases") / line
    if not (folder / "manifest.json").is_file():
        raise UserError(f"promote: no release of line {line} in {folder}; run `make release LINE={line}` first")
    manifest = verify_release(folder).manifest
    keep_encoder(line, folder)
    write_json(_file(line), {"champion": champion_of(folder, manifest)})
    return f"{_file(line)}: champion is bundle {manifest.digest[:16]}; commit {_files(line)}"


def champion_of(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What the champion's file says of a release: its figures, its data's profile, its encoder's hashes."""
    from components.bundle.stage import ENCODER_FILES  # torch takes seconds

    metrics = read_json(folder / "metrics.json")
    profile = folder / "profile.json"  # a release made by an earlier version has none
    return {
        "bundle": manifest.digest,
        "evaluation_data": metrics["evaluation_data"],
        "metrics": metrics,
        "profile": read_json(profile) if profile.is_file() else None,
        "encoder": {name: manifest.files[name] for name in ENCODER_FILES},
    }


def keep_encoder(line: str, folder: Path) -> dict[str, str]:
    """Keep the encoder in ``folder`` beside the champion's file, tracked by DVC, so that later releases can ask it
    again on their own cases. Returns its files with their SHA-256."""
    from dvc.repo import Repo

    from components.bundle.stage import ENCODER_FILES

    kept = _encoder(line)
    with replacing(kept) as temporary:
        temporary.mkdir(parents=True)
        for name in ENCODER_FILES:
            shutil.copyfile(folder / name, temporary / name)
    with Repo() as repo:
        repo.add(str(kept))
    return {name: sha256_file(kept / name) for name in ENCODER_FILES}


def _encoder(line: str) -> Path:
    return CHAMPIONS / f"{line}.encoder"


def _files(line: str) -> str:
    return f"it, {_encoder(line)}.dvc and {CHAMPIONS / '.gitignore'}"


def attest(line: str) -> str:
    """Write ``releases/<line>.attestation.json``: how that bundle stands beside the champion, in figures and in data.

    It is no part of the bundle, whose bytes are the same whoever the champion is. Returns its path.
    """
    bundle = read_manifest(Path("releases") / line).digest
    compared = read_json(data_dir(line, "champion") / COMPARISON)
    path = Path("releases") / f"{line}.attestation.json"
    write_json(path, {"bundle": bundle, **compared, "drift": read_json(data_dir(line, "drift") / "drift.json")})
    return path.as_posix()


def unset(line: str) -> str:
    """Leave the line without a champion."""
    write_json(_file(line), {"champion": None})
    for path in (_encoder(line), Path(f"{_encoder(line)}.dvc")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return f"{_file(line)}: no champion; commit {_files(line)}"


def import_weights(line: str, source: str, recipe: str | None) -> str:
    """Evaluate weights that were made elsewhere on the line's own evaluation data, and make them the champion.

    Args:
        line: model line; its data must be made, up to curation.
        source: a safetensors file, or a repository of the Hugging Face hub (``HF_ENDPOINT`` names a mirror).
        recipe: that tells the encoder's sizes and input; None takes them from ``<line>.pretrain``.

    Raises:
        UserError: no such file or repository, weights that do not fit, a recipe for another grid, no data.
    """
    from components.evaluate.layout import Layout, inputs_of
    from components.evaluate.stage import beside_of, evaluate
    from components.models.embed import EmbedConfig, imported
    from components.pretrain.config import PretrainConfig
    from components.sources.sets import sets_of
    from components.tasks.kinds import tasks_of

    curated = data_dir(line, "curate") / "curated.parquet"
    if not curated.is_file():
        raise UserError(f"{curated}: not found; make the line's data first, `dvc repro curate@{line}`")
    config = load_stage(PretrainConfig, line, "pretrain") if recipe is None else _of_recipe(line, recipe)
    inputs = inputs_of(line, config.input)
    weights = _fetched(source)
    embed = EmbedConfig(encoder=config.encoder, input=config.input, pooling=inputs.config.pooling)
    embedder = imported(weights, embed, inputs.config.device)
    layout = Layout(STATE / "imported" / line)
    evaluate(inputs, tasks_of(line, sets_of(line)), embedder, layout, beside_of(line))
    metrics = read_json(layout.evaluate / "metrics.json")
    digest = sha256_file(weights)
    champion = {"bundle": digest, "evaluation_data": metrics["evaluation_data"], "metrics": metrics, "profile": None}
    champion["encoder"] = keep_encoder(line, layout.features / "encoder")
    write_json(
        _file(line), {"champion": champion | {"imported": Path(source).name if Path(source).is_file() else source}}
    )
    return (
        f"{_file(line)}: champion is {source}, weights {digest[:16]}; commit {_files(line)}\n"
        f"{layout.evaluate / 'report.html'}: its figures; {layout.features / 'encoder'}: the encoder"
    )


def _of_recipe(line: str, recipe: str) -> Any:
    from components.ct.grid import GridConfig
    from components.pretrain.config import PretrainConfig
    from components.registry import other_grid

    config = parse(PretrainConfig, load_recipe(recipe)["pretrain"], "pretrain", str(recipe_file(recipe)))
    grid = load_part(GridConfig, line, "preprocess")
    for key, seen, made in other_grid(config.input, grid):
        raise UserError(
            f"recipe {recipe!r} is not allowed with line {line!r}: its encoder sees {key} {shown(seen)}, and "
            f"{line}.preprocess.{key} is {shown(made)}"
        )
    return config


def _fetched(source: str) -> Path:
    """The file itself, or the hub's, in the hub's own cache."""
    from components.models.hub import fetched

    if Path(source).is_file():
        return Path(source)
    try:
        return fetched(source)
    except UserError as error:
        raise UserError(f"weights {source!r}: no such file; {error}") from None


def add_options(sub: argparse.ArgumentParser) -> None:
    """The command ``ctfoundry import-weights``."""
    sub.add_argument(
        "source", help="a safetensors file, or a hub repository such as project-lighter/ct_fm_feature_extractor"
    )
    add_line(sub)
    sub.add_argument("--recipe", choices=names(), help="its sizes and input (default: those of params.yaml)")
    sub.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> int:
    arithmetic.enter(reproducible(arguments.line))
    with checkout_lock(f"import-weights --line {arguments.line}"):
        print(import_weights(arguments.line, arguments.source, arguments.recipe))
    return 0
