"""Hashes of what a release was made from: code, parameters, pinned versions, data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.files import sha256_file

SOURCE_SUFFIXES = (".py", ".j2", ".html", ".sql", ".css", ".js", ".json", ".svg", ".txt", ".wasm")
SOURCE_PACKAGES = ("components", "serving")


def code_hash(root: Path) -> str:
    """Hex SHA-256 over the sorted (relative path, bytes) of the source of components/ and serving/ below ``root``.

    flows/ is left out: it holds no science, and a change of scheduling makes no other model.
    """
    digest = hashlib.sha256()
    paths = (path for package in SOURCE_PACKAGES for path in (root / package).rglob("*"))
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        if path.is_file() and path.suffix in SOURCE_SUFFIXES and "__pycache__" not in path.parts:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def parameters_hash(block: Any) -> str:
    """Hex SHA-256 of a block of parameters as canonical JSON: comments and order of keys do not count."""
    text = json.dumps(block, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def start_hashes(parameters: Mapping[str, Any]) -> dict[str, str]:
    """``start`` of the manifest: the weights that pretraining began with, where there are any."""
    start = parameters["pretrain"].get("start")
    return {} if start is None else {"start": start["sha256"]}


def data_hashes(cohort: Path, receipts: dict[int, Path], curated: Path) -> dict[str, str]:
    """``data/...`` entries of the manifest: the cohort, every shard's receipt, the curated table."""
    hashes = {"data/cohort": sha256_file(cohort), "data/curated": sha256_file(curated)}
    for shard in sorted(receipts):
        hashes[f"data/receipt-{shard}"] = sha256_file(receipts[shard])
    return hashes
