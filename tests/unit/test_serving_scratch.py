"""Folders of requests: gone with their request, and with the next start where their service was killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
import pytest

from serving.scratch import PREFIX, scratch_folder, sweep

KILLED = """
import anyio, os, signal, sys, tempfile
from serving.scratch import scratch_folder
tempfile.tempdir = sys.argv[1]
async def work():
    async with scratch_folder() as folder:
        (folder / "upload").mkdir()
        (folder / "upload" / "scan").write_text("SECRET")
        os.kill(os.getpid(), signal.SIGKILL)
anyio.run(work)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_folders_of_the_living_stay_and_those_of_the_killed_go(temporary: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(temporary)], check=False)
    (left,) = temporary.iterdir()
    assert (left / "upload" / "scan").read_text() == "SECRET"
    (temporary / "ctfoundry-else").mkdir()

    async def work() -> None:
        async with scratch_folder() as mine:
            assert mine.name.startswith(PREFIX)
            assert sweep() == 1
            assert sorted(temporary.iterdir()) == sorted([temporary / "ctfoundry-else", mine])
            assert sweep() == 0

    anyio.run(work)
    assert list(temporary.iterdir()) == [temporary / "ctfoundry-else"]


def test_a_link_in_place_of_a_folder_leads_nowhere(temporary: Path) -> None:
    (temporary / "kept").mkdir()
    (temporary / f"{PREFIX}x").symlink_to(temporary / "kept")
    assert sweep() == 0
    assert (temporary / "kept").is_dir()
