"""Weights of the Hugging Face hub, in its own cache: what was fetched once needs no network again."""

from __future__ import annotations

import logging
from pathlib import Path

from components.errors import UserError
from components.files import sha256_file

HUB_FILE = "model.safetensors"


def cached(repository: str, file: str, revision: str | None, sha256: str) -> Path | None:
    """The file where the cache holds it with this digest; None where it must be fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file, revision=revision)
    except HFValidationError as error:
        raise UserError(f"repository {repository!r} is not allowed: {_first(error)}") from None
    return Path(found) if isinstance(found, str) and sha256_file(Path(found)) == sha256 else None


def fetched(repository: str, file: str = HUB_FILE, revision: str | None = None) -> Path:
    """The file in the hub's cache (``HF_HOME``), fetched where it is not there; ``HF_ENDPOINT`` names a mirror. What
    was cut short is no file of the cache.

    Args:
        repository: such as ``project-lighter/ct_fm_feature_extractor``.
        file: its path in the repository.
        revision: a commit, branch or tag; None for the newest.

    Raises:
        UserError: no such repository, file or revision, or the hub does not answer.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its attempts
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at {revision}" if revision else ""
        raise UserError(f"hub: no {file} of repository {repository!r}{at}: {_first(error)}") from None


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
