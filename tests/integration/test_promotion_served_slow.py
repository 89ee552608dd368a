"""The service answers with the version that the tags say: promoted, another promoted, rolled back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from published import LINE, Team, forget_cache, git
from released import ROOT, first_answer, free_port, write_release

from components.bundle.inputs import code_hash
from components.files import sha256_tree

CODE = ("components", "serving", "infra/pins")


def ctfoundry(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=clone, env=environment(clone), capture_output=True, text=True, check=False)


def environment(clone: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "BENTOML_HOME": str(clone / "bentos")}


def served(clone: Path) -> str:
    """The digest that the champion's service answers with."""
    port, log = free_port(), clone / "service.log"
    command = [sys.executable, "-m", "flows.cli", "serve", "--line", LINE, "--champion", "--port", str(port)]
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, cwd=clone, env=environment(clone), stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        first_answer(server, f"http://127.0.0.1:{port}/readyz", log)
        return str(httpx.get(f"http://127.0.0.1:{port}/model", timeout=30).json()["digest"])
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen not found")
def test_the_service_answers_with_the_version_that_the_tags_say(tmp_path: Path) -> None:
    team = Team(tmp_path, code=CODE)
    inputs = {"code": code_hash(team.publisher), "lock": sha256_tree(team.publisher / "infra" / "pins")}
    made = tmp_path / "made"
    write_release(made, LINE)
    first = team.publish("v1.0.0", 0.8, made=made, inputs=inputs).digest
    second = team.publish("v1.1.0", 0.9, made=made, inputs=inputs).digest
    anna, operator = team.signer("anna"), team.clone("operator")
    shutil.rmtree(team.publisher)  # what follows comes from the git remote and the DVC remote
    forget_cache(anna)
    for version, expected in (("v1.0.0", first), ("v1.1.0", second)):
        done = ctfoundry(anna, "promote", LINE, version, "--reason", "judged")
        assert done.returncode == 0, done.stderr
        assert served(operator) == expected
    done = ctfoundry(anna, "rollback", LINE)
    assert done.returncode == 0, done.stderr
    assert served(operator) == first
    git(operator, "remote", "set-url", "origin", str(tmp_path / "nowhere"))
    refused = ctfoundry(operator, "serve", "--line", LINE, "--champion")
    assert refused.returncode == 1
    assert refused.stderr.startswith("ctfoundry: git ")
    (bento,) = (operator / "bentos" / "bentos").glob(f"ctfoundry-{LINE}/{first[:16]}/bento.yaml")
    commit = git(operator, "rev-parse", f"{LINE}@v1.0.0^{{}}")
    assert yaml.safe_load(bento.read_text())["labels"]["git_commit"] == commit
