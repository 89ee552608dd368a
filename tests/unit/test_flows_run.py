"""What a stage's end means for the run, and what a run says of itself."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import UserError
from components.files import write_json
from flows import lock
from flows.artifacts import told_verdict
from flows.lock import checkout_lock
from flows.run import GateFailed, ReleaseFailed, Run, StageFailed, Step, failure

ROOT = Path(__file__).resolve().parents[2]
DVC = "ERROR: failed to reproduce 'acquire@head-0': failed to run: python -m components.acquire, exited with {}"


@pytest.mark.parametrize(
    ("exited", "broken", "passing"),
    [(1, False, False), (3, False, False), (75, False, True), (137, False, True), (-9, False, True), (1, True, True)],
)
def test_only_what_may_pass_is_tried_again(exited: int, broken: bool, passing: bool) -> None:
    """A mistake, a gate; a source that is away, a process killed by the kernel, a defect."""
    error = failure("acquire@head-0", 255, ["acquire: what went wrong", DVC.format(exited)], broken)
    assert error.passing is passing
    assert "acquire: what went wrong" in str(error)


def test_of_any_stage_a_process_that_was_killed_is_tried_again(project: Path) -> None:
    run = Run("head")
    run.begin(lambda _: None)
    stages = {step.name.partition("@")[0]: step.retries for step in run.steps if "@" in step.name}
    assert min(stages.values()) >= 1, stages
    for stage in stages:
        assert failure(f"{stage}@head", 255, [DVC.format(-9)], False).passing
        assert failure(f"{stage}@head", -9, [], False).passing
    assert not failure("evaluate@head", 255, [DVC.format(1)], True).passing, "a defect, after hours"


@pytest.mark.parametrize(
    "said",
    [
        "ERROR: Unable to acquire lock. Most likely another DVC process is running",
        "ERROR: '/x/data' is busy, it is being blocked by:",
    ],
)
def test_a_lock_that_another_dvc_holds_is_one_line_and_no_other_try(said: str) -> None:
    error = failure("acquire@head-0", 255, [said, "more", "and more", "of it"], False)
    assert not error.passing
    assert "another DVC command works in this checkout" in str(error)
    assert "\n" not in str(error)


def step(name: str, work: object, report: bool = False) -> Step:
    return Step(name, "", (), 0, work, report)  # type: ignore[arg-type]


def test_a_step_is_done_once_and_a_report_decides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(tell: object) -> str:
        raise ValueError("no page\ntoday")

    run, calls = Run("head"), list[int]()
    run.steps = [step("cohort@head", lambda tell: str(calls.append(1) or "ran")), step("docs", fails, True)]
    for one in (*run.steps, *run.steps):
        run.do(one, print)
    assert calls == [1]
    assert run.complete
    assert run.failure is None
    assert capsys.readouterr().err.splitlines() == ["ctfoundry: warning: docs failed: no page today"]
    run.steps.append(step("bento", fails))
    with pytest.raises(ValueError, match="no page"):
        run.do(run.steps[-1], print)
    assert isinstance(run.failure, ValueError)
    assert not run.complete


def test_a_step_that_goes_well_hides_no_failure_of_one_beside_it() -> None:
    def fails(tell: object) -> str:
        raise StageFailed("no answer", passing=True)

    run = Run("head")
    run.steps = [step("untrained@head", fails), step("pretrain@head", lambda tell: "ran")]
    for _ in range(2):
        with pytest.raises(StageFailed):
            run.do(run.steps[0], print)
        run.do(run.steps[1], print)
        assert isinstance(run.failure, StageFailed)
    run.do(step("untrained@head", lambda tell: "ran"), print)  # it passed the second time
    assert run.failure is None
    assert run.complete


def test_a_stage_waits_for_what_another_enters_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC gives up after 3 seconds otherwise, and with it a stage's work of hours."""
    (tmp_path / "dvc").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "dvc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    told: list[str] = []
    Run("head").run_stage("cases@head", told.append)
    assert told == ["--wait-for-lock repro --single-item cases@head"]


@pytest.mark.parametrize(("given", "jobs"), [(["--jobs", "3"], 3), ([], None)])
def test_the_commands_hand_their_jobs_on(
    given: list[str], jobs: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import cli, verify

    monkeypatch.chdir(tmp_path)
    handed: list[int | None] = []
    monkeypatch.setattr(cli, "_release_alone", lambda arguments, run: handed.append(run.jobs) or 0)
    monkeypatch.setattr(verify, "verify", lambda line, keep, jobs: handed.append(jobs) or [])
    monkeypatch.setattr("flows.places.require_pins", lambda: None)
    for command in ("release", "verify"):
        arguments = cli._parser().parse_args([command, "--line", "head", *given])
        assert arguments.run(arguments) == 0
    assert handed == [jobs, jobs]


def test_a_number_of_jobs_that_is_none_begins_nothing(project: Path) -> None:
    """A deployment's parameters come from a form."""
    run = Run("head", jobs=0)
    with pytest.raises(UserError, match="jobs 0 is not allowed: stages at a time, at least 1"):
        run.begin(lambda _: None)
    assert run.steps == []


def test_gates_are_shown_of_this_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a gate stage that did not come to a verdict, the decision on disk is an earlier run's."""
    monkeypatch.chdir(tmp_path)
    decision = tmp_path / "data" / "head" / "gate" / "decision.json"
    judged = {"verdict": "fail", "gates": [{"gate": "floor", "figure": 0.5, "bound": 0.6, "verdict": "fail"}]}
    write_json(decision, judged)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")

    def dvc(script: str) -> None:
        (binaries / "dvc").write_text(f"#!/bin/sh\n{script}\n")
        (binaries / "dvc").chmod(0o755)

    run = Run("head")
    dvc("echo 'gate: data/x: not found'; exit 255")
    with pytest.raises(StageFailed, match="not found"):
        run.run_stage("gate@head", print)
    assert run.decisions() == []
    dvc(f"mv {decision} {decision}.old; echo 'gate: data/x: not found'; exit 255")  # DVC clears a stage's outputs first
    with pytest.raises(StageFailed, match="not found"):
        run.run_stage("gate@head", print)
    assert run.decisions() == []
    decision.with_name("decision.json.old").rename(decision)
    dvc(f"cp {decision} {decision}.new; mv {decision}.new {decision}; echo 'exited with 3'; exit 255")
    with pytest.raises(GateFailed, match=r"gate not met: floor \(0.5, bound 0.6\)"):
        run.run_stage("gate@head", print)
    assert run.decisions() == [Path("data/head/gate/decision.json")]


def test_a_gate_that_is_off_says_so_and_why() -> None:
    gates = [{"verdict": "off", "detail": "too small: GE 2 patients"}, {"verdict": "pass", "detail": "fine"}]
    assert [told_verdict(gate) for gate in gates] == ["off: too small: GE 2 patients", "pass"]


HOLD = """
from flows.lock import checkout_lock
with checkout_lock("verify --line head"):
    print("held", flush=True)
    input()
"""


def test_a_checkout_is_held_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"`verify --line head`, process {holder.pid} on "), checkout_lock("release"):
        pass
    holder.kill()
    holder.wait()
    with checkout_lock("release"), checkout_lock("and within it"):
        assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()
    with checkout_lock("again"):
        pass


@pytest.mark.parametrize("arguments", [["--help"], ["recipe", "ct_fm"]])
def test_a_reader_that_has_enough_is_no_error(arguments: list[str]) -> None:
    """As of ``ctfoundry recipe ct_fm | head -1``: here the reader is gone before the first word."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from flows.cli import main\nmain()", *arguments]
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(command, cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ""


def test_a_failed_run_prints_nothing_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.artifacts import print_summary

    monkeypatch.chdir(tmp_path)
    gate = {"gate": "leakage", "figure": 0, "bound": 0, "verdict": "pass", "detail": ""}
    funnel = {"in": 124, "accepted": 96, "not_ct": 0, "rejected": {}, "accepted_by_role": {}, "series": []}
    write_json(tmp_path / "data" / "head" / "curate" / "funnel.json", funnel)
    write_json(tmp_path / "data" / "head" / "gate" / "decision.json", {"verdict": "pass", "gates": [gate]})
    write_json(tmp_path / "releases" / "head" / "manifest.json", {"digest": "ab" * 32})
    run = Run("head", outcomes={"cohort@head": "ran"})
    print_summary(run)
    printed = capsys.readouterr().out
    for word in ("124", "leakage", "abab", "releases/head", "report.html"):
        assert word not in printed
    run.outcomes |= {f"{stage}@head": "unchanged" for stage in ("curate", "evaluate", "gate", "bundle")}
    print_summary(run)
    printed = capsys.readouterr().out
    for word in ("124", "leakage", "abab", "releases/head", "report.html"):
        assert word in printed


def test_the_page_shows_plots_of_this_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure, those of the stages that it did not come to are an earlier run's."""
    from flows import artifacts

    monkeypatch.chdir(tmp_path)
    for place in ("head/pretrain/curves", "head/evaluate/figures/scores", "wholebody/evaluate/others"):
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / f"{place}.png").write_bytes(b"PNG of " + place.encode())
    write_json(tmp_path / "data" / "head" / "evaluate" / "metrics.json", {"falls": {}})
    shown: dict[str, str] = {}
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda key, markdown, **_: shown.update({key: markdown}))
    run = Run("head", outcomes={"cohort@head": "ran", "pretrain@wholebody": "ran", "evaluate@wholebody": "ran"})
    artifacts.publish_model(run)
    assert shown == {}, "nothing made, nothing shown"
    for made, names in (("pretrain", ["curves"]), ("evaluate", ["curves", "scores"])):
        run.outcomes[f"{made}@head"] = "ran" if made == "pretrain" else "unchanged"
        artifacts.publish_model(run)
        assert list(shown) == ["head-plots"]
        assert [line for line in shown["head-plots"].splitlines() if "#" in line] == [f"### {name}" for name in names]


def test_the_page_shows_falls_of_this_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import artifacts

    monkeypatch.chdir(tmp_path)
    fall = {"internal": 0.9, "external": 0.71234, "fall": 0.18766, "internal_patients": 40, "external_patients": 30}
    metrics = tmp_path / "data" / "head" / "evaluate" / "metrics.json"
    write_json(metrics, {"falls": {"findings": {"elsewhere": {"linear_auc": fall}}}})
    shown: dict[str, list[dict[str, object]]] = {}
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda key, table, **_: shown.update({key: table}))
    run = Run("head", outcomes={"cohort@head": "ran"})
    artifacts.publish_model(run)
    assert shown == {}, "an earlier run's"
    run.outcomes["evaluate@head"] = "ran"
    artifacts.publish_model(run)
    named = {"task": "findings", "external set": "elsewhere", "figure": "linear_auc"}
    assert shown == {"head-external-sets": [named | fall | {"external": 0.7123, "fall": 0.1877}]}
    shown.clear()
    write_json(metrics, {"falls": {}})
    artifacts.publish_model(run)
    assert shown == {}, "a line without external sets has no such table"


@pytest.mark.parametrize("passing", [True, False])
def test_prefect_tries_again_what_may_pass(passing: bool) -> None:
    from prefect.states import Failed

    from flows.release import _may_pass

    assert _may_pass(None, None, Failed(data=StageFailed("no answer", passing))) is passing
    assert not _may_pass(None, None, Failed(data=GateFailed("gate not met")))


def test_nothing_is_begun_or_tried_again_once_the_run_is_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.states import Failed

    from flows import release
    from flows import run as runs

    run = Run("head", stopped=True)
    with pytest.raises(ReleaseFailed, match="the run is ending"):
        run.do(step("acquire@head", lambda tell: "ran"), print)
    monkeypatch.setattr(runs, "under_way", run)
    assert not release._may_pass(None, None, Failed(data=StageFailed("killed", True)))


def test_only_a_run_without_a_worker_sends_nothing_once_its_server_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform's server begins again. There a run of days without heartbeats would be taken for dead, and begun
    a second time."""
    from prefect.events.clients import NullEventsClient
    from prefect.events.worker import EventsWorker

    from flows import release

    set_to: list[object] = []
    monkeypatch.setattr(EventsWorker, "set_client_override", set_to.append)
    monkeypatch.setattr(release, "set_api_log_sink", lambda sink: None)
    monkeypatch.setattr(release, "waiting_is_vain", lambda: None)
    for run in (Run("head", watched=True), Run("head")):
        monkeypatch.setattr("flows.run.under_way", run)
        complaint = logging.makeLogRecord({"levelno": logging.ERROR, "msg": "events are not taken"})
        assert release._LostServer().filter(complaint) is run.watched
        assert run.page_is_lost is not run.watched
        assert set_to == ([] if run.watched else [NullEventsClient])


def test_a_flow_that_prefect_has_copied_and_its_steps_know_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flow.serve` hands flows to a process as copies, with all that stands beside them in their module."""
    import cloudpickle

    from flows import release
    from flows import run as runs

    cloudpickle.register_pickle_by_value(release)
    try:
        copy = cloudpickle.loads(cloudpickle.dumps(release._may_pass))
    finally:
        cloudpickle.unregister_pickle_by_value(release)
    assert copy is not release._may_pass
    passing = type("State", (), {"data": StageFailed("killed", True)})
    assert copy(None, None, passing)
    monkeypatch.setattr(runs, "under_way", Run("head", stopped=True))
    assert not copy(None, None, passing)
