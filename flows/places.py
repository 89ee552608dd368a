"""What a release needs of the place it runs in, asked before anything is begun: one line each, and how to mend it."""

from __future__ import annotations

import importlib.util
import os
import urllib.request
from importlib import metadata

from packaging.version import Version

from components.errors import UserError
from flows.pins import PINS, SERVING
from flows.repository import commit_labels, is_repository

SERVER_VARIABLE = "PREFECT_API_URL"
NAMED = 3  # packages that an error names


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


def require_pins() -> None:
    """What decides the outputs is installed as the lock file says. Raises UserError.

    A build's own mark, such as ``+cpu`` or ``+cu130``, is no other version. The Bento installs its own.
    """
    pinned = {
        line for path in PINS.glob("*.txt") if path.stem != SERVING for line in path.read_text("utf-8").splitlines()
    }
    other = []
    for name, _, version in sorted(line.partition("==") for line in pinned):
        try:
            installed = Version(metadata.version(name)).public
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed != version:
            other.append(f"{name} {installed} (pinned: {version})")
    if other:
        more = f" and {len(other) - NAMED} more" if len(other) > NAMED else ""
        raise UserError(
            f"installed is {', '.join(other[:NAMED])}{more}: a release is made with what constraints.txt pins; run "
            "`pip install -c constraints.txt -e .`, or pin your versions there and run `python -m flows.pins --write`"
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
