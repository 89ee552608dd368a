"""The release flow: one Prefect task per DVC stage, read from the graph, then the Bento and the reports.

DVC decides what has to run and does all caching; Prefect adds order, retries, artifacts and a page to watch. As many
stages run side by side as the run has jobs. Prefect reports a release and never decides it: where its server goes away,
the rest is made without.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from flows.environment import prepare

prepare()  # a worker of Prefect imports this module and nothing before it

import httpx  # noqa: E402
from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.events.clients import NullEventsClient  # noqa: E402
from prefect.events.worker import EventsWorker  # noqa: E402
from prefect.exceptions import FailedRun, PrefectException  # noqa: E402
from prefect.logging.handlers import set_api_log_sink  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from components.errors import UserError  # noqa: E402
from components.pretrain.config import PretrainConfig  # noqa: E402
from components.settings import load_stage  # noqa: E402
from flows import artifacts  # noqa: E402
from flows import run as runs  # noqa: E402
from flows.lock import checkout_lock, line_slot  # noqa: E402
from flows.processes import PREFECT_SERVER, end_children, waiting_is_vain  # noqa: E402
from flows.run import ReleaseFailed, Run, StageFailed, Step  # noqa: E402
from flows.together import side_by_side  # noqa: E402

RETRY_DELAY_SECONDS = 10


class _WithoutTraceback(logging.Filter):
    """A stage's or a gate's failure is told in its message; our own call stack adds nothing to it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], ReleaseFailed | UserError | FailedRun):
            record.exc_info = None
        return True


class _LostServer(logging.Filter):
    """Prefect's own threads complain of a lost server with every event that they cannot send: once is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if runs.under_way is None or runs.under_way.watched or record.levelno < logging.WARNING:
            return True
        _lose_page(runs.under_way, "events are not taken")
        return False


for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_WithoutTraceback())
for _name in ("prefect.events.clients", "prefect._internal.concurrency"):
    logging.getLogger(_name).addFilter(_LostServer())


def _lose_page(run: Run, why: str) -> None:
    """From here on nothing is sent: each line and event would be tried for seconds, and again at the end. A platform
    starts its server again: there it is tried, for heartbeats are among what is sent."""
    if run.watched:
        return
    run.lose_page(why)
    waiting_is_vain()
    set_api_log_sink(lambda log: None)
    EventsWorker.set_client_override(NullEventsClient)


def make_release(run: Run) -> None:
    """Make the release as a Prefect flow; where Prefect's server is lost, go on without it from where that was.

    Raises:
        GateFailed, StageFailed: no Bento is built, earlier releases stay as they are.
        UserError: the number of workers is not fixed, or another command holds the checkout.
    """
    runs.under_way = run
    try:
        release(run.line, run.jobs)
    except Exception as error:
        # What fails in a step is the run's own failure. Anything else is Prefect's, and costs its page.
        if run.failure is not None:
            raise run.failure from None
        _lose_page(run, type(error).__name__)
        if not run.complete:
            _make_alone(run)
        assert run.complete
    finally:
        runs.under_way = None


def _make_alone(run: Run) -> None:
    if not run.steps:
        run.begin(_fixed_workers)
    for step in run.steps:
        for attempt in range(step.retries + 1):
            try:
                run.do(step, lambda text: print(text, file=sys.stderr, flush=True))
                break
            except StageFailed as error:
                if not error.passing or attempt == step.retries:
                    raise
                time.sleep(RETRY_DELAY_SECONDS)


def _may_pass(task: Any, task_run: Any, state: Any) -> bool:
    """Prefect's question whether to try again: only what may pass the second time."""
    ending = runs.under_way is not None and runs.under_way.stopped
    return isinstance(state.data, StageFailed) and state.data.passing and not ending


@task(cache_policy=NO_CACHE)
def run_step(name: str) -> str:
    """One step of the run that is under way. Returns ``ran`` or ``unchanged``, the Bento's tag, a report's page."""
    run = runs.under_way
    assert run is not None
    (step,) = (step for step in run.steps if step.name == name)
    return run.do(step, get_run_logger().info)


@flow(name="release", flow_run_name="release {line}", task_runner=ThreadPoolTaskRunner())  # type: ignore[arg-type]
def release(line: str, jobs: int | None = None, afresh: bool = False) -> dict[str, Any]:
    """Make a release of one model line: every stage of the graph, the gate's verdict, the Bento, the reports.

    Args:
        line: the model line.
        jobs: stages at a time; as many as this machine bears where None.
        afresh: every stage works, also where nothing about it has changed.

    Returns:
        ``tag``, ``stages`` (name to outcome) and ``data_docs``.

    Raises:
        GateFailed, StageFailed: the flow run is then failed; no Bento is built, earlier releases stay as they are.
        UserError: the number of workers is not fixed, or another command holds the checkout.
    """
    ours = runs.under_way is None  # a worker of Prefect has started it
    run = runs.under_way = runs.under_way or Run(line, jobs, afresh=afresh, watched=True)
    logging.raiseExceptions = False  # of handlers: Prefect's would write of every line that its server does not take
    try:
        with checkout_lock(f"release --line {line}"), line_slot(line, f"release --line {line}"):
            run.begin(_fixed_workers)
            _submit_all(run)
            _report(run, artifacts.publish_model)
    except Exception:
        _report(run, artifacts.publish_model)  # that is when people look
        raise
    except BaseException:  # a signal: its stage ends with the flow, Prefect's server has still to hear of it
        run.stopped = True
        end_children(but=PREFECT_SERVER)
        raise
    finally:
        if ours:
            runs.under_way = None
    return {"tag": run.tag, "stages": run.stages, "data_docs": run.data_docs}


def make_stages(run: Run) -> None:
    """Make the stages ``run.only``, each as a task of the flow that is under way.

    Raises:
        StageFailed, UserError: as :func:`release`.
    """
    runs.under_way = run
    try:
        run.begin(lambda line: None)
        _submit_all(run)
    except Exception:
        raise
    except BaseException:  # a signal
        run.stopped = True
        end_children(but=PREFECT_SERVER)
        raise
    finally:
        runs.under_way = None


def _submit_all(run: Run) -> None:
    def begin(step: Step) -> Any:
        one: Any = run_step.with_options(
            name=step.name,
            description=step.description,
            task_run_name=step.name,
            retries=step.retries,
            retry_delay_seconds=RETRY_DELAY_SECONDS,
            retry_condition_fn=_may_pass,
        )
        begun = one.submit(step.name, wait_for=[done[name] for name in step.upstream if name in done])
        done[step.name] = begun
        return begun

    def ended(step: Step) -> None:
        if step.name == f"drift@{run.line}":
            _report(run, artifacts.publish_data)

    done: dict[str, Any] = {}  # futures by name
    side_by_side(run.steps, run.jobs or 1, begin, ended)


def _report(run: Run, publish: Callable[[Run], None]) -> None:
    """Put something on the run's page, where there is one."""
    if run.page_is_lost:
        return
    try:
        publish(run)
    except (httpx.HTTPError, PrefectException) as error:
        _lose_page(run, type(error).__name__)
    except Exception as error:
        run.warn(f"the run's page lacks some tables: {' '.join(str(error).split())[:300]}")


def _fixed_workers(line: str) -> None:
    workers = load_stage(PretrainConfig, line, "pretrain").workers
    if not isinstance(workers, int):
        raise UserError(
            f"{line}.pretrain.workers is {list(workers)}: a release is made with a fixed number, or it could not be "
            "made again; an elastic run is for `dvc exp run`"
        )
