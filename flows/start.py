"""The weights that a line starts from: written into ``params.yaml``, and checked before anything is made, for a release
takes hours to come to them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from components import yaml12
from components.errors import UserError
from components.files import read_json, sha256_file, write_text
from components.pretrain.config import PretrainConfig
from components.pretrain.start_config import ROOT
from components.settings import PARAMS_FILE, load_stage, parse
from flows.lines import add_line
from flows.lock import checkout_lock
from flows.parameters import check_text, follow, written, yaml_editor
from flows.recipes import load_recipe, names

NEWEST = "main"


def check_start(line: str, fetch: bool) -> str:
    """Hold the weights against the line's parameters.

    Args:
        line: model line.
        fetch: whether the hub may be asked for what its cache has not got.

    Returns:
        What is known of them, for a person; '' of a line that starts from none.

    Raises:
        UserError: no such file, another digest, or another encoder's weights.
    """
    config = load_stage(PretrainConfig, line, "pretrain")
    if config.start is None:
        return ""
    from components.pretrain.start import checked  # torch takes seconds to import

    if checked(line, config, fetch) is None:
        return f"{line}: {config.start.told}: not here yet; the release fetches it"
    return f"{line}: {config.start.told}: fits"


def adopt(line: str, source: str, licence: str, steps: int, recipe: str | None) -> str:
    """Have a line start from weights: its block of ``params.yaml`` names them by digest, all or nothing is written.

    Args:
        line: model line.
        source: a safetensors file, a release's folder, or ``owner/repository[@revision][:file]`` of the hub.
        licence: of the weights, as SPDX names it.
        steps: of training that follows; with 0 the release is those weights, and gets their licence.
        recipe: whose encoder, input and grid they have; None keeps the line's, or takes a release's own.

    Returns:
        What was done, for a person.

    Raises:
        UserError: no such source, weights that do not fit, or parameters that contradict each other.
    """
    from components.pretrain.start import checked

    start, shape = _found(line, source)
    editor = yaml_editor()
    content = editor.load(PARAMS_FILE.read_text())
    block = content[line]
    if recipe is not None:
        known = load_recipe(recipe)
        follow(block["preprocess"], known["preprocess"])
        shape = {key: known["pretrain"][key] for key in ("encoder", "input")}
    follow(block["pretrain"], {**shape, "start": {**start, "licence": licence}, "steps": steps})
    if steps == 0:
        follow(block["pretrain"], {"candidates": 1})
        follow(block["bundle"], {"licence": licence})
    text = written(editor, content)
    check_text(text)
    config = parse(PretrainConfig, yaml12.load(text)[line]["pretrain"], f"{line}.pretrain")
    checked(line, config, fetch=True)
    write_text(PARAMS_FILE, text)
    assert config.start is not None
    then = f"{steps} steps of training follow" if steps else "the release is those weights"
    return f"{PARAMS_FILE}: {line} starts from {config.start.told}, SHA-256 {config.start.sha256}; {then}"


def _found(line: str, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The block's kind, place and digest; encoder and input where the source tells them."""
    from components.models.embed import DESCRIPTION, WEIGHTS
    from components.models.hub import HUB_FILE, fetched
    from components.sources.roots import record_root

    path = Path(source)
    if path.is_dir():
        weights = path / WEIGHTS
        if not weights.is_file():
            raise UserError(f"start {source!r}: the folder holds no {WEIGHTS}: allowed is a release's, or a file")
        record_root(ROOT, path.resolve().parent, line)
        told = read_json(path / DESCRIPTION)
        place = {"kind": "release", "release": path.resolve().name, "sha256": sha256_file(weights)}
        return place, {key: told[key] for key in ("encoder", "input")}
    if path.is_file():
        record_root(ROOT, path.resolve().parent, line)
        return {"kind": "file", "file": path.name, "sha256": sha256_file(path)}, {}
    named, _, file = source.partition(":")
    repository, _, revision = named.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"start {source!r}: neither a file, nor a release's folder, nor owner/repository of the hub")
    place = {"kind": "hub", "repository": repository, "revision": revision or NEWEST, "file": file or HUB_FILE}
    return {**place, "sha256": sha256_file(fetched(repository, file or HUB_FILE, revision or NEWEST))}, {}


def add_options(sub: argparse.ArgumentParser) -> None:
    """The command ``ctfoundry start``."""
    sub.add_argument(
        "source", help="a safetensors file, a release's folder, or owner/repository[@revision][:file] of the hub"
    )
    add_line(sub)
    sub.add_argument("--licence", required=True, help="of the weights, as SPDX names it; NOASSERTION if not known")
    sub.add_argument("--steps", type=int, default=0, help="of training that follows (default: 0, none)")
    sub.add_argument("--recipe", choices=names(), help="whose encoder, input and grid they have (default: the line's)")
    sub.set_defaults(run=_start)


def _start(arguments: argparse.Namespace) -> int:
    with checkout_lock(f"start --line {arguments.line}"):
        print(adopt(arguments.line, arguments.source, arguments.licence, arguments.steps, arguments.recipe))
    return 0
