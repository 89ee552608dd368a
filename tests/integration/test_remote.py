"""The volume store on a DVC remote in a bucket: pushed by one, pulled by another, forgotten when no longer used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from tests.s3 import BUCKET, SIGNED, serving

SECRETS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "DVC_NO_ANALYTICS": "1"}
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org")


def dvc(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "dvc", *words]
    run = subprocess.run(
        command, cwd=folder, env={**os.environ, **SECRETS}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_push_pull_and_garbage_collection(tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    store = here / "data" / "0" / "volumes"
    store.mkdir(parents=True)
    for number in range(4):
        (store / f"s{number}.b2nd").write_bytes(os.urandom(2000))
    with serving(tmp_path) as server:

        def objects() -> int:
            return httpx.get(f"{server.url}/{BUCKET}?list-type=2&prefix=dvc/", headers=SIGNED).text.count("<Key>")

        subprocess.run(["git", "init", "-q"], cwd=here, check=True)
        dvc(here, "init", "-q")
        dvc(here, "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
        dvc(here, "remote", "modify", "store", "endpointurl", server.url)
        dvc(here, "add", "-q", "data/0/volumes")
        dvc(here, "push")
        assert objects() == 5, "four volumes and the list of them"
        subprocess.run(["git", "add", "-A"], cwd=here, check=True)
        subprocess.run([*GIT, "commit", "-qm", "one"], cwd=here, check=True)
        subprocess.run(["git", "clone", "-q", str(here), str(other)], check=True)
        dvc(other, "pull", "data/0/volumes")
        for path in store.iterdir():
            assert (other / "data/0/volumes" / path.name).read_bytes() == path.read_bytes()

        (store / "s0.b2nd").unlink()
        (store / "s4.b2nd").write_bytes(os.urandom(2000))
        dvc(here, "add", "-q", "data/0/volumes")
        assert "new" in dvc(here, "status", "--cloud")
        dvc(here, "push")
        assert objects() == 7, "one volume more, and another list"
        dvc(here, "gc", "--workspace", "--cloud", "--force")
        assert objects() == 5, "what this tree uses"
        assert "Cache and remote 'store' are in sync" in dvc(here, "status", "--cloud")
