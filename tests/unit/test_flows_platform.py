"""What a machine of the platform is told, and what prefect.yaml deploys."""

from __future__ import annotations

import re
import subprocess
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from dvc.config import Config
from prefect.client.schemas.objects import State
from prefect.events import Resource

from components.errors import UserError
from components.settings import lines
from flows.deployed import CANDIDATE, candidate, retrain
from flows.platform import automations, machine, up
from flows.promotion.approval import FLOW, timed_out
from flows.publish import Published
from flows.shards.children import DEPLOYMENT
from flows.shards.deployed import shard as shard_flow
from flows.states import FAILURES, REJECTED, TIMED_OUT

SHARD = shard_flow.name
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
    assert sum(2**n for n in range(1, int(found["PREFECT_CLIENT_MAX_RETRIES"]) + 1)) >= up.LONGEST_PAUSE_SECONDS
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
        if flow.name == SHARD:  # as many at once as there are workers, each with what its release gives it
            assert deployment["work_pool"]["name"] == machine.SHARDS_POOL
            continue
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


def test_the_pool_of_releases_makes_no_shards_for_they_would_wait_for_each_other() -> None:
    pools = {deployment["name"]: deployment["work_pool"]["name"]
             for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}  # fmt: skip
    assert pools.pop(DEPLOYMENT.partition("/")[2]) == machine.SHARDS_POOL
    assert set(pools.values()) == {machine.POOL}
    assert machine.POOL != machine.SHARDS_POOL


@pytest.mark.parametrize("missing", ["PREFECT_API_URL", "CTFOUNDRY_GIT", "CTFOUNDRY_REMOTE"])
def test_a_machine_that_joins_is_told_what_it_must_know(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delenv("DVC_GLOBAL_CONFIG_DIR", raising=False)
    for name in ("PREFECT_API_URL", "CTFOUNDRY_GIT", "CTFOUNDRY_REMOTE"):
        monkeypatch.setenv(name, "told")
    machine.require_joinable()
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=f"^{missing} is not set: "):
        machine.require_joinable()
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", "/etc/dvc")  # which may name the remote, too
    if missing == "CTFOUNDRY_REMOTE":
        machine.require_joinable()


def test_a_published_version_starts_its_promotion_by_what_its_event_carries() -> None:
    made = Published("head", "head@v1.2.0", "release/head/v1.2.0", "c" * 40, "d" * 64, new=True)
    carried = candidate(made)
    assert carried["version"] == "v1.2.0"
    asked = 0
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        for trigger in deployment.get("triggers", []):
            if trigger["expect"] == [CANDIDATE]:
                names = re.findall(r"event\.payload\.(\w+)", str(trigger["parameters"]))
                assert names == ["version"]
                assert set(names) <= set(carried)
                asked += 1
    assert asked == len(lines(ROOT / "params.yaml"))


def test_people_are_told_of_failures_and_of_what_waits_for_them() -> None:
    told = {event.rpartition(".")[2] for event in automations._told(uuid4()).trigger.expect}
    assert told == {"Failed", "Crashed", "Suspended", REJECTED, *FAILURES}
    assert TIMED_OUT in FAILURES


def test_a_run_that_waits_or_has_ended_is_not_taken_for_one_that_has_gone() -> None:
    ends = {event.rpartition(".")[2] for event in automations._lost().trigger.expect}
    assert {"Suspended", "Paused", REJECTED, TIMED_OUT, "heartbeat"} <= ends


def test_only_a_run_that_nobody_answered_is_named_so() -> None:
    trigger = timed_out().trigger
    assert trigger.match_related.root["prefect.resource.name"] == [FLOW, retrain.name]
    assert trigger.expect == {"prefect.flow-run.Failed"}


def part(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> up._Part:
    """A part of the platform whose command is a script, and which has ended."""
    (folder / "prefect").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "prefect").chmod(0o755)
    monkeypatch.setattr(up, "LOGS", folder)
    monkeypatch.setattr("sys.executable", str(folder / "prefect"))
    made = up._Part("server", [])
    made.process.wait()
    return made


def test_a_part_that_was_steady_begins_again_whenever_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its database may be away for longer than it takes to begin: the pauses grow up to a bound."""
    server = part(tmp_path, monkeypatch, "exit 3")
    now, pauses = server.begun + up.STEADY_SECONDS, []
    for _ in range(9):
        server.look(now)
        assert server.again is not None
        pauses.append(server.again - now)
        server.look(server.again - 0.01)
        assert server.again is not None, "not yet"
        now = server.again
        server.look(now)
        assert server.again is None
        server.process.wait()
        server.begun = now  # the clock is ours
    assert pauses == [1, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_part_that_cannot_begin_ends_the_platform_and_one_that_was_killed_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = part(tmp_path, monkeypatch, "echo no such setting; exit 3")
    with pytest.raises(UserError, match=r"platform: server ended \(exit 3\): no such setting"):
        wrong.look(wrong.begun + 1)
    killed = part(tmp_path, monkeypatch, "kill -9 $$")
    killed.look(killed.begun + 1)
    assert killed.again is not None
    (tmp_path / "prefect").write_text("#!/bin/sh\nexit 1\n")  # so a worker ends whose server was killed with it
    killed.look(killed.again)
    killed.process.wait()
    killed.look(killed.begun + 1)
    assert killed.again is not None


def test_a_run_is_missed_at_each_point_where_what_has_it_may_go() -> None:
    """Between worker and first heartbeat, between heartbeats, and after a cancellation."""

    def names(events: set[str]) -> set[str]:
        return {event.rpartition(".")[2] for event in events}

    waits, becomes = {}, {}
    for made in (automations._lost(), automations._never_begun(), automations._cancelled()):
        assert made.trigger.posture.value == "Proactive"
        (after,) = names(made.trigger.after)
        waits[after], becomes[after] = names(made.trigger.expect), made.actions[0].state.value
    assert becomes == {"heartbeat": "CRASHED", "Pending": "SCHEDULED", "Cancelling": "CANCELLED"}
    # What was cancelled is not taken for lost, which would be tried again.
    assert "Cancelling" in waits["heartbeat"] & waits["Pending"]
    assert "Cancelling" not in waits["Cancelling"]
    assert "heartbeat" not in waits["Cancelling"], "it goes on while it ends"
    assert {"heartbeat", "AwaitingConcurrencySlot"} <= waits["Pending"]


class Server:
    """What a Prefect server has, and is told."""

    def __init__(
        self,
        there: list[automations.Automation],
        runs: list[SimpleNamespace] | None = None,
        flows: list[SimpleNamespace] | None = None,
    ) -> None:
        self.there, self.runs, self.flows = there, runs or [], flows or []
        self.deleted, self.set = list[object](), list[tuple[str, str, bool]]()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def read_automations_by_name(self, name: str) -> list[automations.Automation]:
        return [one for one in self.there if one.name == name]

    def delete_automation(self, number: object) -> None:
        self.deleted.append(number)

    def read_flow_runs(self, **_: object) -> list[SimpleNamespace]:
        return self.runs

    def read_flows(self, **_: object) -> list[SimpleNamespace]:
        return self.flows

    def set_flow_run_state(self, run: str, state: State[object], force: bool) -> None:
        self.set.append((run, str(state.name), force))


def test_only_a_changed_automation_forgets_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that went with a run in work starts its platform again: the run's heartbeats are missed still."""
    monkeypatch.delenv(automations.WEBHOOK, raising=False)
    created: list[str] = []
    monkeypatch.setattr(automations.Automation, "create", lambda self: created.append(self.name))
    wanted = [automations._lost(), automations._never_begun(), automations._cancelled(), automations._again(),
              automations._killed_early()]  # fmt: skip
    there = [one.model_copy(deep=True, update={"id": uuid4()}) for one in (*wanted, timed_out())]
    server = Server(there)
    monkeypatch.setattr(automations, "get_client", lambda **_: server)
    automations.set_automations()
    assert (server.deleted, created) == ([], [])
    there[0].trigger.within += timedelta(seconds=1)
    there[3].enabled = False
    automations.set_automations()
    assert server.deleted == [there[0].id, there[3].id]
    assert created == [there[0].name, there[3].name]


def test_a_run_that_was_killed_before_it_began_is_tried_again_and_one_that_cannot_begin_is_not() -> None:
    def crashed(code: int, told: str) -> dict[str, str]:
        return {"prefect.resource.id": "prefect.flow-run.1", "prefect.run-count": "0",
                "prefect.state-message": f"{told} {code}. Why it may have ended"}  # fmt: skip

    match = automations._killed_early().trigger.match
    for told in ("Process exited with status code:", "Flow run infrastructure exited with non-zero status code"):
        assert match.matches(Resource(crashed(-9, told)))
        assert not match.matches(Resource(crashed(1, told)))
        begun = crashed(-9, told) | {"prefect.run-count": "1"}
        assert not match.matches(Resource(begun)), "counted"


def test_what_automations_have_missed_is_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = uuid4(), uuid4()

    def run(name: str, state: str, flow: object = ours, count: int = 1) -> SimpleNamespace:
        return SimpleNamespace(id=name, state_type=automations.StateType(state), flow_id=flow, run_count=count)

    runs = [run("a", "PENDING", other), run("b", "RUNNING"), run("c", "CANCELLING"), run("lost", "CRASHED"),
            run("lost for good", "CRASHED", count=automations.TRIES), run("verification", "CRASHED", other),
            run("cannot begin", "CRASHED", count=0)]  # fmt: skip
    emitted: dict[str, str] = {}
    server = Server([], runs, [SimpleNamespace(id=ours)])
    monkeypatch.setattr(automations, "get_client", lambda **_: server)
    monkeypatch.setattr(
        automations, "emit_event", lambda event, resource: emitted.update({resource["prefect.resource.id"]: event})
    )
    automations.take_up()
    assert emitted == {
        "prefect.flow-run.a": "prefect.flow-run.Pending",
        "prefect.flow-run.b": "prefect.flow-run.heartbeat",
        "prefect.flow-run.c": "prefect.flow-run.Cancelling",
    }
    assert server.set == [("lost", "AwaitingRetry", True)]
    proactive = (automations._lost(), automations._never_begun(), automations._cancelled())
    assert set(emitted.values()) == {event for made in proactive for event in made.trigger.after}
    assert 1.5 * max(made.trigger.within.total_seconds() for made in proactive) < automations.TAKE_UP_SECONDS


def test_a_scheduled_run_has_the_event_that_its_next_one_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it automations hear of a run of a cron a quarter of an hour late: Prefect waits for what never comes."""

    def run(name: str, state: str, by_schedule: bool) -> SimpleNamespace:
        return SimpleNamespace(
            id=name, name=name, auto_scheduled=by_schedule, state=SimpleNamespace(id=uuid4(), name=state)
        )

    runs = [run("weekly", "Scheduled", True), run("by hand", "Scheduled", False), run("again", "AwaitingRetry", True)]
    emitted: list[tuple[str, str, object]] = []

    def emit(event: str, resource: dict[str, str], id: object) -> None:
        emitted.append((event, resource["prefect.resource.id"], id))

    monkeypatch.setattr(automations, "get_client", lambda **_: Server([], runs, []))
    monkeypatch.setattr(automations, "emit_event", emit)
    known = automations.announce(())
    assert emitted == [("prefect.flow-run.Scheduled", "prefect.flow-run.weekly", runs[0].state.id)]
    assert automations.announce(known) == known
    assert len(emitted) == 1, "once"
    assert automations.SOON.total_seconds() > 10 + 2 * automations.ANNOUNCE_SECONDS, "before a worker takes it"
