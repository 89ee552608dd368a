"""Weights of the Hugging Face hub, in its own cache: what was fetched once needs no network again."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from components.errors import PassingError, UserError
from components.files import disk_full, sha256_file

HUB_FILE = "model.safetensors"


def cached(repository: str, file: str, revision: str | None, sha256: str) -> Path | None:
    """The file where the cache holds it with this digest; None where it must be fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) and sha256_file(Path(found)) == sha256 else None


def fetched(repository: str, file: str = HUB_FILE, revision: str | None = None) -> Path:
    """The file in the hub's cache (``HF_HOME``), fetched where it is not there; ``HF_ENDPOINT`` names a mirror. What
    was cut short is no file of the cache, and a later try goes on from there.

    Args:
        repository: such as ``project-lighter/ct_fm_feature_extractor``.
        file: its path in the repository.
        revision: a commit, branch or tag; None for the newest.

    Raises:
        UserError: no such repository, file or revision, or the disk is full.
        PassingError: the hub does not answer.
    """
    import httpx2
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its attempts
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # and that of each request
    what = f"hub: no {file} of repository {repository!r}{f' at {revision}' if revision else ''}"
    try:
        return Path(hf_hub_download(repository, file, revision=revision, endpoint=os.environ.get("HF_ENDPOINT")))
    except HfHubHTTPError as error:
        passes = error.response is not None and error.response.status_code >= 500
        raise (PassingError if passes else UserError)(f"{what}: {_first(error)}") from None
    except HFValidationError as error:
        raise UserError(f"{what}: {_first(error)}") from None
    except (OSError, EntryNotFoundError, httpx2.HTTPError) as error:
        full = disk_full(error, Path(constants.HF_HUB_CACHE)) if isinstance(error, OSError) else None
        raise full or PassingError(f"{what}: {_first(error)}") from None


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
