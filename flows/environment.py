"""The environment every tool runs in: quiet, local, and with this checkout's own state folder.

Import this module before Prefect, DVC, Ray or BentoML: several of them read these variables on import.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

STATE = Path(".ctfoundry")

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
}


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
    # Stages call plain `python` and `dvc`: those of the environment that runs this.
    binaries = str(Path(sys.executable).parent)
    if not os.environ.get("PATH", "").startswith(binaries):
        os.environ["PATH"] = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
