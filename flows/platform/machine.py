"""What a machine that makes releases needs beside a clone: one environment for its workers, and DVC's configuration."""

from __future__ import annotations

import os
from pathlib import Path

from components.errors import UserError
from components.files import STATE, write_text
from flows.repository import git

POOL, SHARDS_POOL = "ctfoundry", "ctfoundry-shards"  # of Prefect's workers: of runs, and of the shards of a release
REMOTE = "CTFOUNDRY_REMOTE"
DVC_CONFIG = "DVC_GLOBAL_CONFIG_DIR"
# Prefect's least. Without one for HEARTBEATS_LOST seconds, on however busy a machine, a run is taken for dead.
HEARTBEAT_SECONDS = 30


def variables() -> dict[str, str]:
    """The environment of the platform's processes on this machine, beside what is set already.

    Raises:
        UserError: this folder is no git repository, or on no branch.
    """
    state = STATE.resolve()
    branch = os.environ.get("CTFOUNDRY_BRANCH") or git("branch", "--show-current")
    if not branch:
        raise UserError("this checkout is on no branch: name the one that releases are made from, CTFOUNDRY_BRANCH")
    found = {
        "CTFOUNDRY_STATE": str(state),
        "CTFOUNDRY_GIT": os.environ.get("CTFOUNDRY_GIT") or str(Path.cwd()),
        "CTFOUNDRY_BRANCH": branch,
        "PREFECT_HOME": _prefect_home(state),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        # So the server answers while its database is away; else a run that ends or begins meanwhile says so to nobody.
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        "PREFECT_CLIENT_MAX_RETRIES": "6",  # two minutes: both are started again
        # In memory, slots would be lost with the server.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        DVC_CONFIG: os.environ.get(DVC_CONFIG) or _dvc_config(state),
    }
    if password := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        found["PREFECT_API_AUTH_STRING"] = os.environ.get("PREFECT_API_AUTH_STRING") or password
    return found


def require_joinable() -> None:
    """What a machine must be told to make shards for a platform elsewhere. Raises UserError."""
    told = {
        "PREFECT_API_URL": "the server of the platform to join, such as http://10.0.0.1:4200/api",
        "CTFOUNDRY_GIT": "the repository that releases are made from, as this machine reaches it",
        REMOTE: "DVC's remote, by which shards are handed over, such as s3://bucket/ctfoundry",
    }
    for name, meaning in told.items():
        if not os.environ.get(name) and not (name == REMOTE and os.environ.get(DVC_CONFIG)):
            raise UserError(f"{name} is not set: {meaning}")


def _prefect_home(state: Path) -> str:
    """Not that of the servers which releases without a platform start for themselves: a database has one server."""
    named = os.environ.get("PREFECT_HOME")
    return str(state / "platform") if named in (None, "", str(state / "prefect")) else named


def _dvc_config(state: Path) -> str:
    """Write where every workspace's DVC keeps its cache, and its remote where one is named; returns the folder.

    Links, so that a workspace holds no second copy. A workspace's own notes go with it.
    """
    text = f'[cache]\n    dir = {state / "cache"}\n    type = "hardlink,symlink,copy"\n'
    text += f"[core]\n    site_cache_dir = {state / 'dvc' / 'site'}\n"
    if remote := os.environ.get(REMOTE):
        text += f"    remote = store\n['remote \"store\"']\n    url = {remote}\n"
    folder = state / "dvc"
    (folder / "site").mkdir(parents=True, exist_ok=True)
    write_text(folder / "config", text)
    return str(folder)
