"""Proof that takes minutes: a release is recomputed byte for byte, survives ``kill -9``, and needs no network."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from checkout import Checkout
from pretrain_project import wait_for_checkpoint

from components.files import sha256_tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("slow"))
    done = checkout.run("ctfoundry", "release", "--line", "wholebody", "--source", "phantom")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return checkout


def test_verify_finds_every_output_identical_also_after_the_promotion(released: Checkout) -> None:
    assert released.run("ctfoundry", "promote", "--line", "wholebody").returncode == 0
    released.git("add", "-A")
    released.git("commit", "-q", "-m", "champion")
    done = released.run("ctfoundry", "verify", "--line", "wholebody")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b(\d+) of \1 outputs identical", done.stdout), done.stdout


def test_verify_refuses_uncommitted_code(released: Checkout) -> None:
    path = released.folder / "components" / "files.py"
    before = path.read_text()
    path.write_text(before + "\n# changed\n")
    done = released.run("ctfoundry", "verify", "--line", "wholebody")
    path.write_text(before)
    assert done.returncode == 1
    assert "components/files.py" in done.stderr


def test_a_killed_training_goes_on_and_ends_in_the_same_weights(released: Checkout) -> None:
    def longer(content: dict) -> None:  # type: ignore[type-arg]
        content["wholebody"]["pretrain"].update(steps=60, checkpoint_every=5)

    before = (released.folder / "params.yaml").read_text()
    released.edit(longer)
    command = ["dvc", "repro", "--single-item", "--force", "--no-run-cache", "pretrain@wholebody"]
    undisturbed = released.run(*command)
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    expected = sha256_tree(released.folder / "data/wholebody/pretrain")
    process = subprocess.Popen(
        command, cwd=released.folder, env=released.environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    runs = released.folder / ".ctfoundry" / "runs"
    wait_for_checkpoint(runs, process)
    os.killpg(process.pid, signal.SIGKILL)
    _kill_rest_of(released.folder)
    process.wait()
    again = released.run(*command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming from the checkpoint at step" in again.stdout + again.stderr
    assert sha256_tree(released.folder / "data/wholebody/pretrain") == expected
    (released.folder / "params.yaml").write_text(before)


def _kill_rest_of(folder: Path) -> None:
    """Workers and Ray's own processes leave the group: kill every process that works in the checkout."""
    for entry in Path("/proc").iterdir():
        try:
            inside = entry.name.isdigit() and (entry / "cwd").readlink() == folder
        except OSError:
            continue
        if inside and int(entry.name) != os.getpid():
            os.kill(int(entry.name), signal.SIGKILL)


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs unshare -n, and root for it")
def test_a_release_needs_no_network(released: Checkout) -> None:
    shutil.rmtree(released.folder / "data")
    shutil.rmtree(released.folder / ".dvc" / "cache")
    command = (
        "ip link set lo up 2>/dev/null || ifconfig lo up; exec ctfoundry release --line wholebody --source phantom"
    )
    done = released.run("unshare", "-n", "bash", "-c", command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
