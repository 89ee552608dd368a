"""Another site's phantoms as a labelled set: other scanners and patients, whose plans are the table."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from components.cohort.config import CohortConfig
from components.cohort.stage import make_cohort
from components.ct.grid import GridConfig
from components.errors import UserError
from components.figures.resampling import sample_of
from components.registry import check_file
from components.settings import ParamsError, load_stage, parse
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import plan_scans
from components.sources.phantom.equipment import HOME, SITES
from components.sources.phantom.plan import FINDINGS, ICH_KINDS
from components.sources.phantom.scanner import scan
from components.sources.phantom.table import planned_table
from components.sources.sets import sets_of
from components.tables import read_table
from components.tasks import classify
from components.tasks.adds import BASELINES
from components.tasks.classify import ClassifyConfig
from components.tasks.scores import Score, family_mean
from components.tasks.table import Inputs
from flows.lines import unknown_roots
from flows.parameters import written, yaml_editor
from flows.sets import _pin
from tests.unit.task_inputs import GRID, evaluation, question

TASK = {"kind": "classify", "set": "line", "label": "finding", "serve": True, "specificity": 0.9, "few_shot": None}
ENCODERS_AUC = ("encoder", "linear_auc")


def phantoms(site: str, **changes: object) -> PhantomConfig:
    sizes = {"pretrain_patients": 4, "evaluation_patients": 24, "retest_patients": 2, "fault_share": 0.1, "seed": 5}
    return PhantomConfig.model_validate({"anatomy": "head", "site": site} | sizes | changes)


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(project / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(*keys: str, to: Any) -> None:
    editor = yaml_editor()
    content = editor.load(Path("params.yaml").read_text())
    block = content["head"]
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = to
    Path("params.yaml").write_text(written(editor, content))


def test_another_site_has_other_patients_scanners_and_noise_with_the_same_seed() -> None:
    here, there = plan_scans(phantoms(HOME)), plan_scans(phantoms("other"))
    assert len(here) == len(there)
    for name in ("patient_id", "series_uid", "study_uid", "frame_uid", "anatomy_seed", "vendor", "model", "kernel"):
        of = [{getattr(plan, name) for plan in plans} for plans in (here, there)]
        assert of[0].isdisjoint(of[1]), name
    assert {plan.vendor for plan in there} == set(SITES["other"].vendors)
    noise = [np.mean([plan.noise_hu for plan in plans]) for plans in (here, there)]
    assert noise[1] > 1.3 * noise[0]


def test_the_plans_say_what_the_scans_have(tmp_path: Path) -> None:
    config = phantoms("other")
    table = planned_table(config)
    plans = {plan.series_uid: plan for plan in plan_scans(config) if plan.role == "evaluation"}
    assert table["series"].tolist() == list(plans)
    assert ((table["ich"] == "present") == (table[list(ICH_KINDS)] == "present").any(axis=1)).all()
    for uid in table["series"][:3]:
        found = scan(plans[uid], tmp_path / uid).set_index("structure")["present"]
        told = table.set_index("series").loc[uid]
        assert {name: told[name] == "present" for name in FINDINGS} == {
            name: bool(found[f"finding_{name}"]) for name in FINDINGS
        }


def test_the_plans_say_what_became_of_the_patients() -> None:
    """The more findings, the sooner; some were last seen alive."""
    table = planned_table(phantoms("other", evaluation_patients=200))
    assert (table["findings"].astype(int) == (table[list(FINDINGS[1:])] == "present").sum(axis=1)).all()
    months, died = table["months"].astype(float), table["died"].map({"1": True, "0": False})
    assert 0.3 < died.mean() < 0.9
    assert months.between(0, 60).all()
    assert months[~died].between(6, 60).all()
    ill = table["findings"].astype(int) >= 3
    assert died[ill].mean() > died[~ill].mean() + 0.1
    assert months[ill & died].median() < months[~ill & died].median()


def test_two_sets_of_a_site_are_other_people() -> None:
    first, second = (planned_table(phantoms("other", seed=seed)) for seed in (5, 6))
    assert set(first["patient"]).isdisjoint(second["patient"])


def test_it_comes_in_to_evaluate_with_and_nobody_of_it_is_pretrained_on(checkout: Path) -> None:
    change("cohort", "phantom", "pretrain_patients", to=3)
    change("cohort", "phantom", "evaluation_patients", to=4)
    change("cohort", "phantom", "retest_patients", to=0)
    found = make_cohort(
        "head", load_stage(CohortConfig, "head", "cohort"), 1, frozenset(), Path("cohort"), sets_of("head")
    )
    of_site = found[found["set"] == "elsewhere"]
    assert len(of_site) == of_site["patient"].nunique() == 24
    assert set(of_site["role"]) == {"evaluation"}
    assert set(of_site["split"]) == {"held_out"}
    assert set(of_site["patient"]).isdisjoint(found.loc[found["set"] != "elsewhere", "patient"])
    labelled = read_table(Path("cohort/labelled.parquet"))
    assert set(labelled.loc[labelled["set"] == "elsewhere", "series"]) == set(of_site["series"])
    sides = labelled.groupby("set")["split"].unique().map(sorted).to_dict()
    assert sides == {"elsewhere": ["test"], "followed": ["test", "train"]}
    assert unknown_roots("head") == [], "nothing of it lies on this machine"


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (
            ("sets", "elsewhere", "scans", "phantom", "site"), "elsewere",
            "head.sets.elsewhere.scans.phantom.site: 'elsewere' is not allowed",
        ),
        (
            ("sets", "more"), {"scans": {"source": "phantom", "phantom": {"site": "other", "seed": 4711}},
                               "labels": None, "split": {"seed": 1, "test": 0.5}, "role": "internal"},
            "head.sets.more.scans.phantom.seed: 4711 is not allowed: set 'elsewhere' has it of site 'other', and",
        ),
        (
            ("tasks", "findings", "external"), ["elsewere"],
            "findings.external: 'elsewere' is not allowed: an external set of phantoms, elsewhere; did you mean",
        ),
        (
            ("sets", "elsewhere", "role"), "internal",
            "'elsewhere' is not allowed: an external set of phantoms, of which there is none",
        ),
        (
            ("gate", "external_falls"),
            [{"task": "findings", "set": "elsewere", "figure": "linear_auc", "maximum": 0.2}],
            "set 'elsewere' is not allowed: of head.tasks.findings.external, elsewhere; did you mean 'elsewhere'?",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(checkout: Path, keys: tuple[str, ...], value: object, said: str) -> None:
    change(*keys, to=value)
    with pytest.raises(ParamsError) as caught:
        check_file(Path("params.yaml"))
    (line,) = str(caught.value).splitlines()
    assert said in line


def test_gates_may_ask_for_the_fall_to_it(checkout: Path) -> None:
    wanted = {"task": "findings", "set": "elsewhere", "figure": "linear_auc", "maximum": 0.2}
    change("gate", "external_falls", to=[wanted])
    change("gate", "floors", to=[{"task": "findings/elsewhere", "figure": "linear_auc", "minimum": 0.6}])
    check_file(Path("params.yaml"))


def two_sites(patients: int, findings: Sequence[str]) -> Inputs:
    """The line's scans, and as many of another site; every second has each finding."""
    series = [f"{site}{number:03d}" for site in ("home", "away") for number in range(patients)]
    curated = pd.DataFrame({"series": series, "patient": series, "volume": series})
    curated["split"] = ["train", "test"] * (patients // 2) + ["held_out"] * patients
    curated = curated.assign(role="evaluation", status="accepted", retest_of="")
    notes = pd.DataFrame(
        [(name, f"finding_{finding}", (int(name[4:]) // 2) % 2 == 0) for name in series for finding in findings],
        columns=["series", "structure", "present"],
    )
    notes = notes.assign(patient="", kind="finding", x=np.nan, y=np.nan, z=np.nan, volume_ml=1.0)
    labelled = pd.DataFrame({"set": "elsewhere", "series": [name for name in series if name.startswith("away")]})
    grid = parse(GridConfig, GRID, "t")
    return Inputs("head", "scan", curated, notes, evaluation(minimum_patients=3), grid, labelled)


def test_findings_are_tested_there_by_what_was_trained_here() -> None:
    task = parse(ClassifyConfig, TASK | {"external": ["elsewhere"]}, "t")
    inputs = two_sites(16, ("ich", "tumour"))
    rows = classify.cases("findings", task, inputs).table
    assert set(rows["task"]) == {f"findings/{part}{one}" for part in ("", "elsewhere/") for one in ("ich", "tumour")}
    trained = {str(name): set(of.loc[of["split"] == "train", "case"]) for name, of in rows.groupby("task")}
    assert trained["findings/ich"] == trained["findings/elsewhere/ich"] != set()
    away = rows[(rows["task"] == "findings/elsewhere/ich") & (rows["split"] == "test")]
    assert set(away["patient"]) == set(inputs.labelled["series"])
    assert not rows.loc[rows["task"] == "findings/ich", "case"].str.startswith("away").any()


def test_each_site_has_a_mean_of_its_own_and_the_head_is_of_here() -> None:
    task = parse(ClassifyConfig, TASK | {"external": ["elsewhere"]}, "t")
    rows = classify.cases("findings", task, two_sites(16, ("ich",))).table
    generator = np.random.default_rng(0)
    places = rows.drop_duplicates("volume")
    vectors = {
        name: generator.normal(size=(len(places), 3)) for name in ("encoder", "random_1", "random_2", *BASELINES)
    }
    with threadpool_limits(1):
        outcome = classify.judge(replace(question("findings", task, places, vectors), rows=rows))
    of = {score.task: score.value for score in outcome.scores if (score.method, score.figure) == ENCODERS_AUC}
    assert of["findings"] == of["findings/ich"] != of["findings/elsewhere"] == of["findings/elsewhere/ich"]
    assert set(outcome.heads) == {"findings/ich"}, "of another site there is no head of its own"


def test_a_mean_is_of_its_own_parts() -> None:
    sample = sample_of(["a", "b", "c"])
    parts = {"f/a": 0.6, "f/b": 0.8, "f/site/a": 0.1, "f/site/b": 0.3, "f/site": 0.2}
    scores = [Score(name, "encoder", "linear_auc", np.full(3, value), 3, sample) for name, value in parts.items()]
    means = [family_mean([score for score in scores if score.task != "f/site"], name) for name in ("f", "f/site")]
    assert [(mean[0].task, mean[0].value, told) for mean, told in means] == [
        ("f", pytest.approx(0.7), "Mean over 2 f: a, b."),
        ("f/site", pytest.approx(0.2), "Mean over 2 f/site: a, b."),
    ]


def test_a_set_of_phantoms_has_nothing_to_pin(checkout: Path) -> None:
    with pytest.raises(UserError, match="set 'elsewhere' is not allowed: its scans are phantoms, and nothing"):
        _pin(Namespace(line="head", name="elsewhere"))
