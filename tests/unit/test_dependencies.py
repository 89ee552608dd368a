"""What a touched file or parameter makes stale, in the real graph as DVC reads it: what decides an output, and no more.

The table is printed with ``pytest -s``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from components import code
from components.preprocess import kept
from components.registry import BLOCKS
from components.settings import OF_THE_MACHINE, PARAMS_FILE, decisive, read_yaml
from tests import dependencies
from tests.released import ROOT

LINE = "wholebody"
CODE = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "components").rglob("*.py"))


class Graph:
    """The stages of one line: what each depends on directly."""

    def __init__(self) -> None:
        with Repo(str(ROOT)) as repo:
            stages = [s for s in repo.index.stages if re.search(rf"@{LINE}\b", s.addressing)]
            self.keys = {
                s.addressing: [str(key) for d in s.deps if isinstance(d, ParamsDependency) for key in d.params]
                for s in stages
            }
            self.paths = {
                s.addressing: [str(d.def_path) for d in s.deps if not isinstance(d, ParamsDependency)] for s in stages
            }

    def stale(self, path: str = "", key: str = "") -> set[str]:
        """Names of the stages, without line; with their shard where only one shard's stage is touched."""
        hit = {
            name
            for name in self.paths
            if any(path == dep or path.startswith(f"{dep}/") for dep in self.paths[name])
            or any(key == dep or key.startswith(f"{dep}.") for dep in self.keys[name])
        }
        stages: dict[str, set[str]] = {}
        for name in hit:
            stages.setdefault(name.partition("@")[0], set()).add(name)
        every = {s: {n for n in self.paths if n.startswith(f"{s}@")} for s in stages}
        return {n for s, found in stages.items() for n in ({s} if found == every[s] else found)}


TRAINING = (
    "components/pretrain/",
    "components/ct/store.py",
    "components/sources/roots.py",  # where weights to begin with lie
    "components/models/",
    "components/arithmetic.py",
    "components/__init__.py",
)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph()


def leaves(block: Any, prefix: str) -> Iterator[str]:
    if isinstance(block, dict):
        for key, value in block.items():
            yield from leaves(value, f"{prefix}.{key}")
    else:
        yield prefix


@pytest.mark.parametrize("stage", [name for name in dependencies.stages() if name not in dependencies.WHOLE])
def test_a_stage_names_the_modules_that_decide_its_output_and_no_other(stage: str) -> None:
    assert dependencies.listed(stage) == dependencies.needed(stage), "python -m tests.dependencies --write"


def test_every_file_and_folder_of_ours_that_a_stage_names_is_there() -> None:
    for name, block in dependencies.stages().items():
        for path in (dep for dep in block["deps"] if not dep.startswith(("data/", "infra/champions/"))):
            assert (ROOT / path).exists(), f"{name}: {path}"
    queries = "components/sources/queries"
    assert queries in dependencies.stages()["cohort"]["deps"]


def test_a_kept_volume_is_made_again_where_the_code_of_its_voxels_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(kept, "code_digest", lambda modules, _: asked.extend(modules) or "")
    kept.code_version()
    voxels = {"dicom", "nifti", "standardise", "measure", "store"}
    assert {f"components/ct/{name}.py" for name in voxels} <= set(asked)
    assert kept.KEEPS not in asked


def test_what_only_carries_voxels_is_no_part_of_a_kept_volumes_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor is what that imports: a word in the package's __init__ would otherwise make every volume again."""
    shutil.copytree(ROOT / "components", tmp_path / "components", ignore=shutil.ignore_patterns("__pycache__"))
    for module in (code, kept):
        monkeypatch.setattr(module, "ROOT", tmp_path)

    def version_with_a_word_in(*names: str) -> str:
        for name in names:
            with (tmp_path / "components" / name).open("a") as stream:
                stream.write("# a word\n")
        for cached in (code.imports, code.code_digest):
            cached.cache_clear()
        return kept.code_version()

    try:
        before = version_with_a_word_in()
        assert version_with_a_word_in("__init__.py", "arithmetic.py", "settings.py") == before
        assert version_with_a_word_in("ct/measure.py") != before
    finally:
        monkeypatch.undo()
        version_with_a_word_in()


def test_what_has_no_part_in_an_output_is_still_there() -> None:
    for stage, modules in dependencies.WITHOUT_PART.items():
        for module in modules:
            assert (ROOT / module).is_file(), f"{stage}: {module}"


def test_late_imports_count() -> None:
    assert "components/sources/idc.py" in dependencies.needed("acquire")
    assert "components/pretrain/ray_driver.py" in dependencies.needed("pretrain")


def test_a_touched_module(graph: Graph) -> None:
    table = {path: graph.stale(path) for path in CODE}
    for path, stages in table.items():
        print(f"{path:<45} {', '.join(sorted(stages))}")
    assert table["components/progress.py"] == {"bundle"}
    assert table["components/pretrain/plots.py"] == {"bundle"}
    assert table["components/models/embed.py"] == {
        "cases", "untrained", "features", "task", "evaluate", "rival", "bundle",
    }  # fmt: skip
    assert table["components/sources/phantom/body.py"] == {"cohort", "acquire", "preprocess", "bundle"}
    assert table["components/files.py"] >= {"cohort", "acquire", "screen", "preprocess", "curate", "evaluate", "gate"}
    assert "acquire" not in table["components/cluster.py"]
    for path, stages in table.items():
        assert "bundle" in stages, "its manifest names the code"
        assert "pretrain" not in stages or path.startswith(TRAINING)
    for path in ("README.md", "flows/release.py", "params.yaml", "components/pretrain/recipes/ct_fm.yaml"):
        assert graph.stale(path) <= {"bundle"}, "no training follows from it"


def test_a_touched_parameter(graph: Graph) -> None:
    block = read_yaml(ROOT / PARAMS_FILE)[LINE]
    table = {key: graph.stale(key=f"{LINE}.{key}") for stage in block for key in leaves(block[stage], stage)}
    for key, stages in table.items():
        print(f"{key:<45} {', '.join(sorted(stages))}")
    kept = {key for stage in decisive(block) for key in leaves(decisive(block)[stage], stage)}
    assert {key for key, stages in table.items() if not stages} == table.keys() - kept, "settings of the machine, only"
    assert {key for key, stages in table.items() if "bundle" in stages} == kept
    machine = {"acquire.workers", "acquire.raw", "acquire.max_memory_gib", "preprocess.max_memory_gib"}
    assert machine | {k for k in table if k.startswith("acquire.transfer.")} <= table.keys() - kept
    assert table["cohort.quality.max_patient_share"] == {"cohort", "bundle"}, "nothing is transferred for a bound"
    assert table["screen.min_instances"] == {"screen", "bundle"}
    assert table["reproducible"] >= {"cohort", "acquire", "preprocess", "curate", "pretrain", "evaluate", "bundle"}
    assert table["preprocess.spacing_mm"] == {
        "preprocess", "cases", "untrained", "features", "task", "evaluate", "rival", "bundle",
    }, "and no series is brought in again"  # fmt: skip
    assert table["tasks.organs.label"] == {
        "cases", f"task@{LINE}-organs", "evaluate", "rival", "bundle",
    }, "no other task"  # fmt: skip
    assert table["pretrain.steps"] == {"pretrain", "bundle"}, "untrained encoders are embedded once"
    assert table["acquire.mixed_series"] == {"acquire", "preprocess", "bundle"}
    other = read_yaml(ROOT / PARAMS_FILE)["head"]
    assert not any(graph.stale(key=f"head.{key}") for key in leaves(other["cohort"], "cohort"))


def test_every_block_that_a_stage_reads_is_one_of_its_parameters(graph: Graph) -> None:
    through_the_slice = {("acquire", "cohort"), ("preprocess", "cohort")}
    own = {"peers": ("untrained", "task"), "published": ("evaluate",)}  # of the stages that share a package
    for stage in dependencies.stages():
        if stage in dependencies.WHOLE:
            continue
        start = re.search(r"python -m components\.(\w+)", dependencies.stages()[stage]["cmd"])
        assert start is not None
        package = (ROOT / "components" / start[1]).glob("*.py")
        read = {
            name
            for path in package
            for name in re.findall(r'load_(?:stage|part)\(\w+, \w+, "(\w+)"\)', path.read_text())
        }
        named = {key.split(".")[1] for name, keys in graph.keys.items() if name.startswith(f"{stage}@")
                 for key in keys if "." in key}  # fmt: skip
        wanted = {block for block in read if stage in own.get(block, (stage,))}
        assert {block for block in wanted if (stage, block) not in through_the_slice} <= named, stage


def test_a_shard_is_stale_by_its_own_part_of_the_cohort_alone(graph: Graph) -> None:
    part = f"data/{LINE}/cohort/shards/0/cohort.parquet"
    assert graph.stale(part) == {f"{stage}@{LINE}-0" for stage in ("acquire", "screen", "preprocess")}
    masks = f"data/{LINE}/cohort/masks/0/masks.parquet"
    assert graph.stale(masks) == {f"preprocess@{LINE}-0", "curate"}, "a corrected mask makes its scan's labels again"
    assert graph.stale(f"data/{LINE}/cohort/quality.json") == set(), "its sentences are nobody's input"
    assert graph.stale(f"data/{LINE}/cohort/cohort.parquet") == {"curate", "bundle"}


def test_settings_of_the_machine_are_settings() -> None:
    for stage, names in OF_THE_MACHINE.items():
        assert set(names) <= set(BLOCKS[stage].model_fields)


def test_dvc_itself_finishes_a_shard_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """``dvc repro`` and ``dvc exp run`` plan by themselves; a disk may hold one shard of raw files."""
    from dvc.repo.reproduce import plan_repro

    monkeypatch.chdir(ROOT)
    with Repo(".") as repo:
        every = [s.addressing for s in plan_repro(repo.index.graph)]
        one = [s.addressing for s in plan_repro(repo.index.graph, repo.stage.collect(f"bundle@{LINE}"))]
    for order in (every, one):
        data = [name for name in order if name.partition("@")[0] in ("acquire", "screen", "preprocess")]
        shards = [name.partition("@")[2] for name in data]
        assert shards == [shard for shard in dict.fromkeys(shards) for _ in range(3)]
        assert [name.partition("@")[0] for name in data] == ["acquire", "screen", "preprocess"] * (len(data) // 3)
