"""What a release needs of the place it runs in, asked before anything is begun: one line each, and how to mend it."""

from __future__ import annotations

import importlib.util
import os
import urllib.request

from components.params import UserError
from flows.repository import commit_labels, is_repository

SERVER_VARIABLE = "PREFECT_API_URL"


def require_repository() -> None:
    """DVC works in a git repository, or is told that there is none. Raises UserError."""
    from dvc.config import Config

    if is_repository():
        commit_labels()  # no commit yet, or a git that does not answer: now, and not after the training
    elif not Config.from_cwd().get("core", {}).get("no_scm"):
        raise UserError(
            "this folder is no git repository: clone it, make it one (git init && git add -A && git commit -m import), "
            "or release without a commit's name on the Bento (dvc config --local core.no_scm true)"
        )


def require_server() -> None:
    """A server that is named answers, and one of our own can be reached. Raises UserError."""
    for name, proxy in urllib.request.getproxies().items():
        if name != "no" and proxy.startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise UserError(
                f"{name.upper()}_PROXY is a socks proxy, for which the package socksio is missing: install it, or "
                "set HTTP_PROXY and HTTPS_PROXY instead"
            )
    address = os.environ.get(SERVER_VARIABLE)
    if not address:
        return
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    once = {PREFECT_API_URL: address, PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(once), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise UserError(
            f"{SERVER_VARIABLE} {address!r}: no Prefect server answers there ({type(error).__name__}); start it, or "
            f"unset {SERVER_VARIABLE}: then the release starts one for itself"
        )
