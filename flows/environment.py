"""The environment every tool runs in: quiet, local, and with this checkout's own state folder.

Import this module before Prefect, DVC, Ray or BentoML: several of them read these variables on import.
"""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

from components.files import STATE

# No dependency phones home.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Not about the network: idle OpenMP threads that spin cost their neighbours two thirds of a shared core.
    "OMP_WAIT_POLICY": "passive",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLIENT_MAX_RETRIES": "3",  # 14 s: longer than a hiccup of its server a release does not wait for its page
}
LOOPBACK = ("127.0.0.1", "localhost")


def prepare() -> None:
    """Set what is not set already. Call from the project's root."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    state = STATE.resolve()
    os.environ.setdefault("BENTOML_HOME", str(state / "bentoml"))
    if "PREFECT_API_URL" not in os.environ:
        # No server is named: Prefect starts one for the run, on the loopback, with its database beside the project.
        os.environ.setdefault("PREFECT_HOME", str(state / "prefect"))
        Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
    _reach_own_servers()
    _be_somebody(state)
    # Stages call plain `python` and `dvc`: those of the environment that runs this.
    binaries = str(Path(sys.executable).parent)
    if not os.environ.get("PATH", "").startswith(binaries):
        os.environ["PATH"] = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"


def _reach_own_servers() -> None:
    """A proxy of the house leads out of it; the servers of a run are on this machine."""
    named = ",".join(filter(None, (os.environ.get(name) for name in ("no_proxy", "NO_PROXY"))))
    hosts = dict.fromkeys(host.strip() for host in named.split(",") if host.strip())
    hosts.update(dict.fromkeys(LOOPBACK))
    for name in ("no_proxy", "NO_PROXY"):  # readers differ in which they take
        os.environ[name] = ",".join(hosts)


def _be_somebody(state: Path) -> None:
    """A container's user may be a bare number without a name or a home; DVC and others ask for both."""
    user = os.getuid()
    try:
        name, home = pwd.getpwuid(user).pw_name, os.environ.get("HOME") or pwd.getpwuid(user).pw_dir
    except KeyError:
        name, home = f"user{user}", os.environ.get("HOME", "")
    for variable in ("USER", "LOGNAME"):
        os.environ.setdefault(variable, name)
    if home == "/" or not os.access(home, os.R_OK | os.X_OK):
        (state / "home").mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(state / "home")
    elif not os.access(home, os.W_OK):  # it may hold credentials to read; what is written goes elsewhere
        os.environ.setdefault("PREFECT_HOME", str(state / "prefect"))
