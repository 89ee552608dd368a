"""One run of a release: its steps, what each came to in this run, and why it failed. It knows no Prefect."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from components import arithmetic
from components.bundle.signing import sign_release, signing_key
from components.command import EXIT_PASSING
from components.errors import UserError
from components.files import read_json
from components.gate.champion import COMPARISON
from components.settings import reproducible
from components.sources.roots import ROOTS_FILE
from flows.champion import attest
from flows.costs import usage as costs
from flows.costs.members import MARK
from flows.costs.meter import Meter
from flows.costs.moved import moved_bytes, receipts_of
from flows.costs.usage import Usage
from flows.graph import Node, require_free, stages_for
from flows.processes import started
from flows.together import default_jobs, longest_first, task_blocks
from flows.verify import note_machine

# Worth another try where the failure may pass: transfers fail, and a killed training resumes from its checkpoint.
RETRIES = {"acquire": 2, "preprocess": 1, "pretrain": 1}
RETRIES_OF_OTHERS = 1  # only where the process was killed: by the kernel for its memory, by a mistake on the machine
TAIL_LINES = 12
# What DVC says after every stage, whoever runs it.
DVC_HINTS = ("To track the changes", "git add", "To enable auto staging", "dvc config core.autostage", "Use `dvc push`",
             "Updating lock file")  # fmt: skip
DVC_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
DECISIONS = {"gate": "decision.json", "champion": COMPARISON}
DOCS, BENTO, COST = "data docs", "bento", "cost"
Tell = Callable[[str], None]


class ReleaseFailed(RuntimeError):
    """A release that was not made; the message is one line for people."""


class StageFailed(ReleaseFailed):
    """A stage ended with an error; the message ends in what it printed last. ``passing``: another try may succeed."""

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class GateFailed(ReleaseFailed):
    """The verdict is no; the message names each gate that was not met."""


@dataclass(frozen=True)
class Step:
    """One thing to do: a DVC stage, or what follows the graph. ``report``: its failure costs itself only."""

    name: str
    description: str
    upstream: tuple[str, ...]
    retries: int
    work: Callable[[Tell], str]
    report: bool = False


@dataclass
class Run:
    """A release in the making.

    Attributes:
        line: the model line.
        jobs: steps at a time; None until the run begins: as many as this machine bears.
        only: make these stages and no release; all, and the release, where empty.
        afresh: every stage works, and nothing that this machine keeps stands in for its work.
        outcomes: step to what it came to, of this run only.
        watched: a worker of Prefect has started it, which takes a run without heartbeats for dead.
        page_is_lost: Prefect's server does not answer any more.
        stopped: a signal has asked us to end; nothing is begun or tried again.
        arithmetic: the environment of the line's mode, so that no stage need begin a second time in it.
        spent: what each stage took in this run, also where it had nothing to do.
    """

    line: str
    jobs: int | None = None
    only: tuple[Node, ...] = ()
    afresh: bool = False
    watched: bool = False
    outcomes: dict[str, str] = field(default_factory=dict)
    page_is_lost: bool = False
    stopped: bool = False
    steps: list[Step] = field(default_factory=list)
    arithmetic: dict[str, str] = field(default_factory=dict)
    spent: dict[str, Usage] = field(default_factory=dict)
    _decided: set[str] = field(default_factory=set)
    _failures: dict[str, Exception] = field(default_factory=dict)  # by step, the first one first

    def begin(self, check: Callable[[str], None]) -> None:
        """Make the list of steps. What ``check`` raises is the run's failure."""
        try:
            check(self.line)
            if self.jobs is not None and self.jobs < 1:
                raise UserError(f"jobs {self.jobs} is not allowed: stages at a time, at least 1")
            require_free()
            signing_key()  # one that is not allowed is told before days of training
            self.jobs = self.jobs or default_jobs()
            self.arithmetic = arithmetic.variables(reproducible(self.line))
            self.steps = self._steps()
        except Exception as error:
            self._failures["begin"] = error
            raise

    def do(self, step: Step, tell: Tell) -> str:
        """Do a step, once: its outcome, at another time the same."""
        if step.name not in self.outcomes:
            if self.stopped:
                raise ReleaseFailed("the run is ending")
            self._failures.pop(step.name, None)
            try:
                self.outcomes[step.name] = step.work(tell)
            except Exception as error:
                if not step.report:
                    self._failures[step.name] = error
                    raise
                self.warn(f"{step.name} failed: {' '.join(str(error).split())[:300]}")
                self.outcomes[step.name] = ""
        return self.outcomes[step.name]

    def lose_page(self, why: str) -> None:
        """Say, once, that Prefect does not hear of this run any more."""
        if not self.page_is_lost:
            self.page_is_lost = True
            self.warn(f"Prefect's server does not answer ({why}): the release goes on, its page does not")

    def warn(self, text: str) -> None:
        """One line on standard error."""
        print(f"ctfoundry: warning: {text}", file=sys.stderr, flush=True)

    @property
    def failure(self) -> Exception | None:
        """What ended it, where something did."""
        return next(iter(self._failures.values()), None)

    @property
    def complete(self) -> bool:
        return bool(self.steps) and all(step.name in self.outcomes for step in self.steps)

    @property
    def tag(self) -> str | None:
        """The Bento's, where it was built."""
        return self.outcomes.get(BENTO)

    @property
    def data_docs(self) -> str | None:
        return self.outcomes.get(DOCS) or None

    @property
    def stages(self) -> dict[str, str]:
        """Stage to ``ran`` or ``unchanged``."""
        return {name: outcome for name, outcome in self.outcomes.items() if "@" in name}

    def made(self, stage: str) -> bool:
        """Whether this run made a stage's outputs, or found that nothing about them has changed."""
        return f"{stage}@{self.line}" in self.outcomes

    def decisions(self) -> list[Path]:
        """Tables of gates that were judged in this run, also where the verdict was no."""
        return [self._decision(stage) for stage in DECISIONS if self.made(stage) or stage in self._decided]

    def _decision(self, stage: str) -> Path:
        return Path("data") / self.line / stage / DECISIONS[stage]

    def _steps(self) -> list[Step]:
        if self.only:
            return [self._of_stage(node) for node in self.only]
        # Before anything is trained, the data are held beside the champion's: what is refused there costs no training.
        last, judged = f"bundle@{self.line}", f"drift@{self.line}"
        before = {node.name: node for node in stages_for(judged)}
        after = [node for node in stages_for(last) if node.name not in before]
        after = longest_first(after, task_blocks(self.line))
        steps = [self._of_stage(node) for node in before.values()]
        steps += [self._of_stage(replace(node, upstream=(*node.upstream, judged))) for node in after]
        docs = partial(build_data_docs, self.line)
        steps.insert(len(before), Step(DOCS, "Great Expectations Data Docs", (judged,), 0, docs, report=True))
        attested = Step("attestation", "Beside the champion", (last,), 0, lambda tell: attest(self.line))
        bento = Step(BENTO, "The Bento of the release", (last,), 0, lambda tell: build_bento(self.line))
        told = "What it took: hours, bytes, money, energy"
        cost = Step(COST, told, (BENTO, "attestation"), 0, lambda tell: write_cost(self), report=True)
        return [*steps, attested, bento, cost]

    def _of_stage(self, node: Node) -> Step:
        retries = RETRIES.get(node.name.partition("@")[0], RETRIES_OF_OTHERS)
        return Step(node.name, node.description, node.upstream, retries, lambda tell: self.run_stage(node.name, tell))

    def run_stage(self, name: str, tell: Tell) -> str:
        """Run one DVC stage. Returns ``ran`` or ``unchanged``. Raises StageFailed, GateFailed."""
        stage = name.partition("@")[0]
        before = _identity(self._decision(stage)) if stage in DECISIONS else None
        tail: list[str] = []
        outcome, broken, restored = "ran", False, False
        mark, received = uuid.uuid4().hex, receipts_of(self.line)
        environment = {**os.environ, **self.arithmetic, **(own_state() if self.afresh else {}), MARK: mark}
        # Another stage may be entering its results. A stage's work of hours is not lost to that.
        command = ["dvc", "--wait-for-lock", "repro", "--single-item", *(["--force"] if self.afresh else []), name]
        with (
            started(command, environment=environment) as (process, lines),
            Meter(name, process.pid, mark) as meter,
        ):
            for text in lines:
                if text.strip().startswith(DVC_HINTS):
                    continue
                tail = [*tail[-TAIL_LINES + 1 :], text]
                outcome = "unchanged" if "didn't change, skipping" in text else outcome
                restored = restored or "is cached - skipping run" in text
                broken = broken or text.startswith("Traceback (most recent call last)")
                tell(text)
        self.spent[name] = self.spent.get(name, Usage()) + meter.usage
        ending = _ending(process.returncode, tail, made=outcome == "ran" and not restored)
        meter.close(ending, None if self.afresh else moved_bytes(name, self.line, received))
        if process.returncode == 0:
            if stage == "pretrain" and outcome == "ran" and not restored:
                note_machine(self.line)
            return outcome
        if stage in DECISIONS and _identity(self._decision(stage)) not in (None, before):
            self._decided.add(stage)
            raise_if_not_met(self._decision(stage))
        raise failure(name, process.returncode, tail, broken)


def own_state() -> dict[str, str]:
    """The environment of stages for which only this checkout keeps anything, beside where sources lie."""
    state = Path(".ctfoundry").resolve()
    state.mkdir(exist_ok=True)
    if ROOTS_FILE.is_file() and ROOTS_FILE.resolve().parent != state:
        (state / ROOTS_FILE.name).write_bytes(ROOTS_FILE.read_bytes())
    return {"CTFOUNDRY_STATE": str(state)}


def run_first(line: str, stage: str, tell: Tell, afresh: bool) -> None:
    """Run one stage of a line before its release, which then finds it unchanged.

    Raises:
        StageFailed: the message is one line for people.
    """
    run = Run(line, afresh=afresh, arithmetic=arithmetic.variables(reproducible(line)))
    run.run_stage(f"{stage}@{line}", tell)


# The one that is under way, also for Prefect's own threads; a checkout has one at a time. It stands here, and not
# beside the flow: Prefect may copy a flow with all that stands beside it.
under_way: Run | None = None


def failure(name: str, code: int, tail: list[str], broken: bool) -> StageFailed:
    """What a stage's end means: ``code`` of dvc, the last lines, and whether a traceback was among them.

    A mistake of the user, a suite's or a gate's verdict and a lock that others hold are no better the second time. A
    process that was killed and a source that is away (``EXIT_PASSING``) may be; what nobody foresaw, where a stage
    depends on what is outside, or goes on from what it had.
    """
    busy = [text for text in tail if any(word in text for word in DVC_BUSY)]
    if busy:
        return StageFailed(f"stage {name}: another DVC command works in this checkout: {busy[0]}; wait for it to end")
    exited = _exited(code, tail)
    unforeseen = broken and name.partition("@")[0] in RETRIES
    passing = _killed(exited) or unforeseen or exited == EXIT_PASSING
    return StageFailed(f"stage {name} failed (dvc exit {code}): " + " | ".join(tail[-4:]), passing)


def _exited(code: int, tail: list[str]) -> int:
    """How the stage's own command ended, of which dvc tells in words."""
    told = re.findall(r"exited with (-?\d+)", " ".join(tail))
    return int(told[-1]) if told else code


def _killed(exited: int) -> bool:
    return exited < 0 or exited > 128


def _ending(code: int, tail: list[str], made: bool) -> str:
    """What the record of a stage says of its end; empty where there was nothing to do."""
    if code == 0:
        return costs.MADE if made else ""
    return costs.KILLED if _killed(_exited(code, tail)) else costs.FAILED


def write_cost(run: Run) -> str:
    """What the release took, beside it; returns the page."""
    from flows.costs.release import account, own_cpu_seconds, write_account

    return write_account(run.line, account(run.line, run.spent, own_cpu_seconds())).as_posix()


def _identity(path: Path) -> tuple[int, int] | None:
    """Changes whenever a file is written anew, as ours always are."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def raise_if_not_met(decision: Path) -> None:
    """Raise GateFailed, naming gate, figure and bound, where the decision was no."""
    failed = [gate for gate in read_json(decision)["gates"] if gate["verdict"] == "fail"]
    if failed:
        named = "; ".join(f"{g['gate']} ({_text(g['figure'])}, bound {_text(g['bound'])})" for g in failed)
        raise GateFailed(f"gate not met: {named}")


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def build_data_docs(line: str, tell: Tell) -> str:
    """Great Expectations Data Docs of the judged tables, in a process that ends with us; returns the page."""
    last = ""
    with started([sys.executable, "-m", "components.summary", "--line", line]) as (process, lines):
        for last in lines:
            tell(last)
    if process.returncode != 0:
        raise StageFailed(last or f"exit {process.returncode}")
    return next((Path("reports") / line / "data_docs").glob("gx/uncommitted/data_docs/*/index.html")).as_posix()


def build_bento(line: str) -> str:
    """The Bento of the release, which is signed where a key is at hand; returns the Bento's tag. The commit is on the
    Bento, not in the bundle."""
    from flows.repository import commit_labels
    from serving.build import build_bento as build

    folder, key = Path("releases") / line, signing_key()
    if key is not None:
        sign_release(folder, key)
    return build(folder, commit_labels())
