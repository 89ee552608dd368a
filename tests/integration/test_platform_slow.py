"""A run whose worker and process are killed is found, tried again at its commit, and leaves nothing behind."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from platform_of import RUN_S, Platform
from tiny_graph import tiny, wait_until

from flows.platform.automations import HEARTBEATS_LOST


def within(folder: Path) -> list[psutil.Process]:
    """Processes whose working folder lies there."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


@pytest.mark.slow
def test_a_run_that_was_killed_is_found_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    of = Platform(tmp_path, tiny(tmp_path / "checkout"))
    with of.up() as platform:
        run = of.begin("retrain/wholebody", {"SLOW": "pretrain"})
        wait_until(lambda: len(under_way(of)) == 1, RUN_S, "the slow stage")
        (first,) = under_way(of)
        commit = of.git("rev-parse", "HEAD")
        # The branch moves on meanwhile: the run stays at its commit.
        of.checkout.git("commit", "-q", "--allow-empty", "-m", "later")
        of.checkout.git("push", "-q", "origin", "HEAD")
        below = psutil.Process(platform.pid).children(recursive=True)
        workers = [process for process in below if "worker" in process.cmdline()]
        engines = [process for process in within(first) if any("prefect.engine" in word for word in process.cmdline())]
        assert workers
        assert engines
        for process in (*workers, *engines):
            process.kill()
        assert within(first), "the stage has outlived its run"
        wait_until(lambda: under_way(of) not in ([], [first]), HEARTBEATS_LOST + RUN_S, "it is tried again")
        assert not first.exists()
        assert not within(first)
        (second,) = under_way(of)
        for process in within(second):
            if "tiny_stage.py" in " ".join(process.cmdline()) and "python" in process.name():
                process.send_signal(signal.SIGUSR1)
        state = of.ended(run)
        assert state["type"] == "COMPLETED", f"{state}\n{of.logs()}"
        assert of.get(f"flow_runs/{run}")["run_count"] == 2
        assert of.git("rev-parse", "wholebody@v0.0.1~") == commit
    wait_until(lambda: not list(of.tmp.glob("tmp*prefect")), RUN_S, "the workspace goes")


def under_way(of: Platform) -> list[Path]:
    """Workspaces in which the slow stage waits."""
    return [path.parent for path in of.tmp.glob("tmp*prefect/ctfoundry/under_way")]
