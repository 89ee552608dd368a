"""Shards handed out and collected by real git and DVC: the same lock file, and nothing is computed in its place."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prefect.states import Completed, Crashed, Failed, Pending, Running, Scheduled

from components.errors import UserError
from components.files import write_json, write_text
from flows.costs.usage import COSTS
from flows.publish import push_stages
from flows.run import StageFailed
from flows.shards import children, refs
from flows.shards.children import Order, make
from flows.shards.collect import NotCollected, collect, records
from flows.shards.parts import Shard, out_of_date, restore, shard_of, shards_of

LINE, RUN = "w", "01a2"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def dvc(*arguments: str) -> None:
    subprocess.run(["dvc", *arguments], check=True, capture_output=True)


def write_graph(folder: Path) -> None:
    """Cohort, two shards of two stages each, and a bundle."""
    copy = "echo ran >> ran && mkdir -p {out} && cp code {out}/one && date +%N > {out}/two"

    def stage(out: str, *deps: str) -> dict[str, Any]:
        return {"cmd": copy.format(out=out), "deps": ["code", *deps], "outs": [out]}

    shard = "${item.line}/{}/${item.shard}"
    acquired, done = shard.replace("{}", "acquire"), shard.replace("{}", "preprocess")
    each = {"line": [LINE], "shard": [0, 1]}
    stages = {
        "cohort": {"foreach": [LINE], "do": stage("${item}/cohort")},
        "preprocess": {"matrix": each, **stage(done, acquired, "${item.line}/cohort")},
        "acquire": {"matrix": each, **stage(acquired, "${item.line}/cohort")},
        "bundle": {"foreach": [LINE], "do": stage("${item}/bundle", "${item}/preprocess")},
    }
    write_text(folder / "dvc.yaml", yaml.safe_dump({"stages": stages}))


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``team.git``, a DVC remote, and the clones ``collects`` and ``makes`` with caches of their own; the cohort is
    pushed, shards are not made; we are in ``collects``."""
    seed = tmp_path / "seed"
    seed.mkdir()
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "dvc"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    git(seed, "init", "-q", "-b", "main")
    monkeypatch.chdir(seed)
    dvc("init", "-q")
    dvc("remote", "add", "-q", "--default", "store", str(tmp_path / "remote"))
    write_graph(seed)
    write_text(seed / "code", "1")
    write_text(seed / ".gitignore", f"/{LINE}\n/ran\n/.ctfoundry\n")
    dvc("repro", "-q", "--single-item", f"cohort@{LINE}")
    dvc("push", "-q")
    git(seed, "add", "-A")
    git(seed, "commit", "-qm", "code")
    git(tmp_path, "clone", "-q", "--bare", "seed", "team.git")
    for name in ("collects", "makes"):
        git(tmp_path, "clone", "-q", "team.git", name)
    monkeypatch.chdir(tmp_path / "collects")
    dvc("pull", "-q", f"cohort@{LINE}")
    return tmp_path


def make_elsewhere(team: Path, monkeypatch: pytest.MonkeyPatch, *shards: str) -> None:
    """What the runs of shards do, on the other machine."""
    with monkeypatch.context() as there:
        there.chdir(team / "makes")
        dvc("pull", "-q", f"cohort@{LINE}")
        for name in shards:
            _, shard = shard_of(LINE, name)
            dvc("repro", "-q", "--single-item", *shard.names)
            push_stages(shard.names, lambda text: None)
            write_json(COSTS / shard.names[0] / f"of-{name}.json", {"outcome": "failed"})
            refs.hand_in(RUN, name, {refs.LOCK: Path(refs.LOCK), **records(shard, 0.0)})


def test_shards_are_read_from_the_graph(team: Path) -> None:
    first, shards = shards_of(LINE)
    assert [node.name for node in first] == [f"cohort@{LINE}"]
    names = {shard.name: shard.names for shard in shards}
    assert names == {shard: [f"acquire@{LINE}-{shard}", f"preprocess@{LINE}-{shard}"] for shard in "01"}
    with pytest.raises(UserError, match=r"shard '2' is not allowed: line w has 0, 1"):
        shard_of(LINE, "2")


def test_what_was_made_elsewhere_ends_in_the_same_lock_file_and_nothing_runs(
    team: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shards = shards_of(LINE)
    names = [name for shard in shards for name in shard.names]
    make_elsewhere(team, monkeypatch, "1", "0")
    restore(shards)
    assert set(out_of_date(names)) == set(names)
    assert not Path("ran").exists(), "a look at what has changed computes nothing"
    collect(RUN, shards, lambda text: None)
    assert out_of_date(names) == {}
    assert not Path("ran").exists()
    # One after another, with outputs that differ each time: only the order of its entries may tell it from ours.
    made = yaml.safe_load((team / "makes" / "dvc.lock").read_text())["stages"]
    ours = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    assert list(ours) == [f"cohort@{LINE}", *names]
    assert ours == made
    before = Path("dvc.lock").read_bytes()
    dvc("repro", *names)
    assert Path("dvc.lock").read_bytes() == before, "as DVC itself writes it"
    assert not Path("ran").exists()
    assert (COSTS / names[0] / "of-0.json").is_file()
    # What this machine has by now is restored, and is no reason to ask others.
    shutil.rmtree(LINE)
    git(Path(), "checkout", "-q", "dvc.lock")
    dvc("checkout", "-q", f"cohort@{LINE}")
    restore(shards)
    assert out_of_date(names) == {}
    assert Path("dvc.lock").read_bytes() == before


@pytest.mark.parametrize("lost", ["a file", "the list of files"])
def test_an_object_that_is_missing_is_named_and_not_made_again(
    team: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    _, shards = shards_of(LINE)
    make_elsewhere(team, monkeypatch, "0", "1")
    folder = team / "makes" / LINE / "preprocess" / "1"
    (two,) = subprocess.check_output(["md5sum", folder / "two"], text=True).split()[:1]
    lock = yaml.safe_load((team / "makes" / "dvc.lock").read_text())
    (out,) = lock["stages"][f"preprocess@{LINE}-1"]["outs"]
    digest = two if lost == "a file" else out["md5"]
    (team / "remote" / "files" / "md5" / digest[:2] / digest[2:]).unlink()
    told = (
        f"^stage preprocess@{LINE}-1: {LINE}/preprocess/1: an object is missing in DVC's remote; nothing was computed"
    )
    with pytest.raises(NotCollected, match=told) as error:
        collect(RUN, shards, lambda text: None)
    assert "\n" not in str(error.value)
    assert not Path("ran").exists()


def test_a_shard_of_other_code_and_one_that_nobody_handed_in_are_named(
    team: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shards = shards_of(LINE)
    make_elsewhere(team, monkeypatch, "0")
    with pytest.raises(NotCollected, match=f"^stage acquire@{LINE}-1: its run handed nothing in"):
        collect(RUN, shards, lambda text: None)
    write_text(Path("code"), "2")
    with pytest.raises(NotCollected, match=f"^stage acquire@{LINE}-0: made from another code than is here"):
        collect(RUN, shards[:1], lambda text: None)
    assert not Path("ran").exists()


def test_refs_are_no_branches_and_go_with_their_run(team: Path) -> None:
    write_text(Path("dvc.lock"), "of this run")
    commit = refs.hand_out(RUN, LINE)
    assert git(team / "team.git", "show", f"{commit}:dvc.lock") == "of this run"
    assert git(team / "team.git", "branch", "--list").split() == ["*", "main"]
    refs.hand_out("02b3", LINE)
    assert refs.clear_dead(lambda run: run == RUN) == 1
    assert git(team / "team.git", "for-each-ref", "--format=%(refname)", refs.ROOT) == f"{refs.ROOT}/02b3/from"
    refs.clear("02b3")
    refs.clear("02b3")
    assert git(team / "team.git", "for-each-ref", refs.ROOT) == ""


class Runs:
    """Runs of shards, which Prefect would tell of: per shard and try the states that it goes through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, courses: dict[str, list[list[Any]]], online: int = 1) -> None:
        self.courses, self.now, self.busy = courses, 0.0, 0
        self.begun, self.cancelled = list[str](), list[str]()

        def begin(order: Order, shard: Shard) -> Any:
            if self.busy:
                self.busy -= 1
                raise httpx.ReadTimeout("busy")
            self.begun.append(shard.name)
            return self._run(shard.name)

        def cancel(of: Sequence[Any]) -> None:
            self.cancelled += [child.shard.name for child in of]
            for child in of:
                child.given_up = True

        monkeypatch.setattr(children, "_begin", begin)
        monkeypatch.setattr(children, "_read", self._read)
        monkeypatch.setattr(children, "_cancel", cancel)
        monkeypatch.setattr(children, "workers_online", lambda: online)
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep)
        monkeypatch.setattr(children, "time", clock)

    def _run(self, shard: str) -> Any:
        return SimpleNamespace(state=self.courses[shard][self.begun.count(shard) - 1].pop(0))

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _read(self, of: Sequence[Any]) -> None:
        for child in of:
            if child.run and not child.ended and self.courses[child.shard.name][self.begun.count(child.shard.name) - 1]:
                child.run = self._run(child.shard.name)


def made(shards: str, tell: Callable[[str], None] = lambda text: None) -> list[str]:
    order = Order(LINE, RUN, "c" * 40, "t" * 40)
    return [shard.name for shard in make(order, [Shard(name, ()) for name in shards], tell)]


def test_a_shard_whose_machine_has_gone_begins_again_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch, {
        "0": [[Scheduled(), Running(), Crashed()], [Scheduled(), Running(), Completed()]],
        "1": [[Scheduled(), Running(), Completed()]],
    })  # fmt: skip
    assert made("01") == ["0", "1"]
    assert runs.begun == ["0", "1", "0"]


def test_a_busy_server_is_asked_again_and_one_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch, {"0": [[Running(), Completed()]]})
    runs.busy = 5
    assert made("0") == runs.begun == ["0"]
    runs.busy = 10**6
    with pytest.raises(StageFailed, match=r"^shards: Prefect's server does not answer \(ReadTimeout\)$"):
        made("0")


def test_a_shard_that_is_lost_each_time_ends_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(monkeypatch, {"0": [[Running(), Crashed()] for _ in range(5)]})
    with pytest.raises(StageFailed, match=r"^shard 0: its machine or process was lost 3 times$"):
        made("0")
    assert runs.begun == ["0"] * 3


@pytest.mark.parametrize(("name", "error"), [("StageFailed", StageFailed), ("Refused", UserError)])
def test_a_failure_is_told_in_its_own_words_and_nothing_is_begun_after_it(
    monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception]
) -> None:
    failed = Failed(name=name, message="stage acquire@w-0 failed: no room")
    runs = Runs(
        monkeypatch, {"0": [[Running(), failed]], "1": [[Pending()]], "2": [[Running(), Running(), Completed()]]}
    )
    with pytest.raises(error, match=f"^shard 0: {name}: stage acquire@w-0 failed: no room$"):
        made("012")
    assert runs.cancelled == ["1"], "what is under way ends by itself"


def test_what_no_worker_is_left_for_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    runs = Runs(monkeypatch, {"0": [[Running(), Completed()]], "1": [[Scheduled()]]}, online=0)
    assert made("01", said.append) == ["0"]
    assert runs.cancelled == ["1"]
    assert said == ["no worker of pool ctfoundry-shards is left: shard 1 will be made here"]
