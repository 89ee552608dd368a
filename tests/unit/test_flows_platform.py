"""What a machine of the platform is told, and what prefect.yaml deploys."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from dvc.config import Config

from components.errors import UserError
from components.settings import lines
from flows.platform import machine

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CTFOUNDRY_GIT", "CTFOUNDRY_BRANCH", "DVC_GLOBAL_CONFIG_DIR", "PREFECT_HOME", "CTFOUNDRY_REMOTE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "STATE", tmp_path / "a state")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *identity, *command], check=True)
    return tmp_path


def test_every_workspace_has_this_machines_cache_and_remote(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTFOUNDRY_REMOTE", "s3://bucket/ctfoundry")
    found = machine.variables()
    assert (found["CTFOUNDRY_GIT"], found["CTFOUNDRY_BRANCH"]) == (str(checkout), "main")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", found["DVC_GLOBAL_CONFIG_DIR"])
    config = Config.from_cwd()  # as DVC itself reads it, in a folder without a word of its own
    assert config["cache"]["dir"] == str(checkout / "a state" / "cache")
    assert config["cache"]["type"] == ["hardlink", "symlink", "copy"]
    assert config["core"]["remote"] == "store"
    assert config["remote"]["store"]["url"] == "s3://bucket/ctfoundry"


def test_what_is_set_already_stays(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"DVC_GLOBAL_CONFIG_DIR": "/etc/dvc", "CTFOUNDRY_GIT": "ssh://host/team.git", "CTFOUNDRY_BRANCH": "stable"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    assert ours.items() <= machine.variables().items()
    assert not (checkout / "a state" / "dvc").exists()


def test_without_a_branch_the_run_would_not_know_its_commit(checkout: Path) -> None:
    subprocess.run(["git", "checkout", "-q", "--detach"], check=True)
    with pytest.raises(UserError, match="CTFOUNDRY_BRANCH"):
        machine.variables()


def test_prefect_yaml_deploys_every_line_one_run_at_a_time() -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    found = {}
    for deployment in content["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        flow = getattr(import_module(path.removesuffix(".py").replace("/", ".")), name)
        given = deployment.get("parameters", {})
        asked = {key: "v1.2.0" for trigger in deployment.get("triggers", []) for key in trigger["parameters"]}
        flow.validate_parameters(given if flow.name != "promote" else given | asked)
        if flow.name != "promote":  # which waits for a person, and races by tags
            assert deployment["concurrency_limit"]["limit"] == 1
        found[f"{flow.name}/{deployment['name']}"] = given.get("line")
        for trigger in deployment.get("triggers", []):
            assert trigger["match"] == {"prefect.resource.id": f"ctfoundry.line.{given['line']}"}
            assert set(trigger["parameters"]) <= set(flow.parameters.properties)
    for line in lines(ROOT / "params.yaml"):
        assert found[f"retrain/{line}"] == found[f"watch/{line}"] == found[f"promote/{line}"] == line
    assert {"verify/release", "sweep/machine"} <= set(found)
