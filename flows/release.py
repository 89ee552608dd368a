"""The release flow: one Prefect task per DVC stage, read from the graph, then the Bento and the reports.

DVC decides what has to run and does all caching; Prefect adds order, retries, artifacts and a page to watch. Stages run
one after another because DVC holds one lock per checkout.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.task_runners import ThreadPoolTaskRunner

from components.files import read_json
from components.params import UserError, load_stage
from components.pretrain.config import PretrainConfig
from flows import artifacts
from flows.graph import Node, stages_for

# Worth another try: transfers fail, and a killed training resumes from its checkpoint. A verdict is never retried.
RETRIES = {"acquire": 2, "preprocess": 1, "pretrain": 1}
RETRY_DELAY_SECONDS = 10
TAIL_LINES = 12
# What DVC says after every stage, whoever runs it.
DVC_HINTS = ("To track the changes", "git add", "To enable auto staging", "dvc config core.autostage", "Use `dvc push`",
             "Updating lock file")  # fmt: skip


class StageFailed(RuntimeError):
    """A stage ended with an error; the message ends in what it printed last."""


class GateFailed(RuntimeError):
    """The gate's verdict is no; the message names each gate that was not met."""


class _WithoutTraceback(logging.Filter):
    """A stage's or a gate's failure is told in its message; our own call stack adds nothing to it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], StageFailed | GateFailed):
            record.exc_info = None
        return True


for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_WithoutTraceback())


@task
def run_stage(node: Node, line: str) -> str:
    """Run one DVC stage. Returns ``ran`` or ``unchanged``."""
    log = get_run_logger()
    tail: list[str] = []
    outcome = "ran"
    with _started(["dvc", "repro", "--single-item", node.name]) as (process, lines):
        for text in lines:
            if text.strip().startswith(DVC_HINTS):
                continue
            tail = [*tail[-TAIL_LINES + 1 :], text]
            outcome = "unchanged" if "didn't change, skipping" in text else outcome
            log.info("%s", text)
    if process.returncode != 0:
        if node.name.startswith("gate@"):
            raise_if_gate_failed(line)
        raise StageFailed(f"stage {node.name} failed (dvc exit {process.returncode}): " + " | ".join(tail[-4:]))
    return outcome


@contextmanager
def _started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A child process and its lines. It is ended with us: no training goes on after an interrupted flow."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    assert process.stdout is not None
    try:
        yield process, (text.rstrip() for text in process.stdout if text.strip())
    finally:
        if process.poll() is None and not process.stdout.closed:
            process.stdout.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()


def raise_if_gate_failed(line: str) -> None:
    """Raise GateFailed, naming gate, figure and bound, where the last decision was no."""
    path = Path("data") / line / "gate" / "decision.json"
    if not path.is_file():
        return
    failed = [g for g in read_json(path)["gates"] if g["verdict"] == "fail"]
    if failed:
        named = "; ".join(f"{g['gate']} ({_text(g['figure'])}, bound {_text(g['bound'])})" for g in failed)
        raise GateFailed(f"gate not met: {named}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@task(name="data docs", task_run_name="data docs {line}")
def build_data_docs(line: str) -> str:
    """Great Expectations Data Docs of the judged tables; returns the page."""
    from components.quality.__main__ import main

    main(line)
    return next((Path("reports") / line / "data_docs").glob("gx/uncommitted/data_docs/*/index.html")).as_posix()


@task(name="bento", task_run_name="bento {line}")
def build_bento(line: str) -> str:
    """The Bento of the release; returns its tag. The commit is on the Bento, not in the bundle."""
    from flows.repository import commit_labels
    from serving.build import build_bento as build

    return build(Path("releases") / line, commit_labels())


@flow(name="release", flow_run_name="release {line}", task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def release(line: str = "wholebody") -> dict[str, Any]:
    """Make a release of one model line: every stage of the graph, the gate's verdict, the Bento, the reports.

    Returns:
        ``tag``, ``stages`` (name to outcome) and ``data_docs``.

    Raises:
        GateFailed, StageFailed: the flow run is then failed; no Bento is built, earlier releases stay as they are.
        UserError: the number of workers is not fixed.
    """
    workers = load_stage(PretrainConfig, line, "pretrain").workers
    if not isinstance(workers, int):
        raise UserError(
            f"{line}.pretrain.workers is {list(workers)}: a release is made with a fixed number, or it could not be "
            "made again; an elastic run is for `dvc exp run`"
        )
    done: dict[str, Any] = {}  # futures by name
    # Prefect types `submit` by the task's own arguments, without `wait_for`.
    docs: Any = build_data_docs
    bento: Any = build_bento
    try:
        for node in stages_for(f"bundle@{line}"):
            stage = node.name.partition("@")[0]
            step: Any = run_stage.with_options(
                name=node.name,
                description=node.description,
                task_run_name=node.name,
                retries=RETRIES.get(stage, 0),
                retry_delay_seconds=RETRY_DELAY_SECONDS,
            )
            done[node.name] = step.submit(node, line, wait_for=[done[name] for name in node.upstream])
            done[node.name].result()
            if stage == "curate":
                done["data docs"] = docs.submit(line, wait_for=[done[node.name]])
                artifacts.publish_data(line)
        tag = bento.submit(line, wait_for=[done[f"bundle@{line}"]]).result()
    finally:
        # Also after a failure: that is when people look.
        artifacts.publish_model(line)
    return {
        "tag": tag,
        "stages": {name: future.result() for name, future in done.items() if name != "data docs"},
        "data_docs": done["data docs"].result(),
    }
