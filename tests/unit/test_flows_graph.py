"""The flow's order comes from ``dvc.yaml``; a shard is finished before the next is begun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pretrain_project import write_project

from components.errors import UserError
from components.settings import read_yaml
from flows.graph import stages_for
from flows.release import release
from flows.run import Run


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_order(project: Path, line: str) -> None:
    names = [node.name for node in stages_for(f"bundle@{line}")]
    data = [f"{stage}@{line}-{shard}" for shard in (0, 1) for stage in ("acquire", "screen", "preprocess")]
    tasks = [f"task@{line}-{name}" for name in read_yaml()[line]["tasks"]]
    stages = ("curate", "cases", "pretrain", "features", "untrained")
    later = [f"{stage}@{line}" for stage in ("evaluate", "gate", "rival", "drift", "champion", "bundle")]
    assert names == [f"cohort@{line}", *data, *(f"{stage}@{line}" for stage in stages), *sorted(tasks), *later]


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_a_release_judges_the_data_before_it_trains_and_the_champion_before_it_writes(project: Path, line: str) -> None:
    run = Run(line)
    run.begin(lambda _: None)
    names = [step.name.partition("@")[0] for step in run.steps if "-" not in step.name]
    assert names == ["cohort", "curate", "drift", "data docs", "cases", "pretrain", "features", "untrained", "evaluate",
                     "gate", "rival", "champion", "bundle", "attestation", "bento", "cost"]  # fmt: skip
    after = run.steps[[step.name for step in run.steps].index(f"drift@{line}") + 1 :]
    assert [step.name for step in after if f"drift@{line}" not in step.upstream] == ["attestation", "bento", "cost"]
    assert all(step.upstream == (f"bundle@{line}",) for step in after[-3:-1])
    assert after[-1].upstream == ("bento", "attestation"), "what the release took is told when it is there"


def test_a_release_does_not_wait_for_another_dvc_without_end(project: Path) -> None:
    """It has entered nothing yet: one line, and both may go on."""
    from dvc.repo import Repo

    run = Run("head")
    with Repo(str(project)) as repo, repo.lock, pytest.raises(UserError, match="another DVC command works in this che"):
        run.begin(lambda _: None)
    assert isinstance(run.failure, UserError)
    assert run.steps == []
    run = Run("head", jobs=3)
    run.begin(lambda _: None)
    assert (run.jobs, run.failure) == (3, None)


@pytest.mark.parametrize("line", ["wholebody", "head"])
def test_nothing_that_a_bundle_is_made_from_knows_the_champion(project: Path, line: str) -> None:
    """But the bundle itself waits for the verdict, which holds nothing else."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    knowing = {name for name, stage in stages.items() if "infra/champions" in str(stage)}
    assert knowing == {"drift", "rival", "champion"}
    deps = {name: " ".join(stage.get("do", stage)["deps"]) for name, stage in stages.items()}
    found = {name: re.findall(r"data/\$\{item\}/((?:drift|rival|champion)\S*)", text) for name, text in deps.items()}
    assert {name: paths for name, paths in found.items() if paths} == {
        "champion": ["drift", "rival"], "bundle": ["champion/verdict.json"],
    }  # fmt: skip


def test_every_upstream_stage_comes_first(project: Path) -> None:
    seen: set[str] = set()
    for node in stages_for("bundle@head"):
        assert seen.issuperset(node.upstream)
        seen.add(node.name)


def test_components_import_no_orchestrator() -> None:
    root = Path(__file__).resolve().parents[2] / "components"
    forbidden = ("import prefect", "from prefect", "import dvc", "from dvc", "import bentoml", "from bentoml",
                 "from flows", "from serving")  # fmt: skip
    found = [str(p) for p in root.rglob("*.py") for text in p.read_text().splitlines() if text.startswith(forbidden)]
    assert not found


def test_an_elastic_run_is_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_project(tmp_path, "wholebody", workers=[1, 2]))
    with pytest.raises(
        UserError, match=r"wholebody.pretrain.workers is \[1, 2\]: a release is made with a fixed number"
    ):
        release.fn("wholebody")
