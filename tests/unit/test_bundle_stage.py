"""The bundle stage writes a whole, reproducible release, or nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from safetensors.numpy import save_file

from components.bundle.config import BundleConfig
from components.bundle.manifest import verify_bundle
from components.bundle.stage import Sources, make_bundle
from components.errors import UserError
from components.files import read_json, sha256_file, write_json, write_text
from components.gate import champion as champion_stage
from components.models.embed import untrained_embedder
from components.models.heads import Head, load_heads
from components.settings import parse
from components.tables import write_table
from flows import champion as promoting
from tests.unit.gate_blocks import params
from tests.unit.test_evaluate_stage import tiny_embedder
from tests.unit.test_models_heads import description, linear

WORDS: dict[str, Any] = {
    "name": "ctfoundry-wholebody",
    "title": "Test encoder",
    "description": "An encoder made for a test.",
    "licence": "Apache-2.0",
    "contact": "nobody",
    "intended_use": ["Tests of the bundle stage."],
    "not_for": ["anything else."],
    "limits": ["It was never trained."],
    "references": [],
}
PARAMETERS: dict[str, Any] = {
    "reproducible": "machine",
    "acquire": {"mixed_series": "whole"},
    "preprocess": {"orientation": "SPL", "spacing_mm": [3.0, 1.0, 1.0]},
    "screen": {"min_instances": 20},
    "curate": {"min_extent_mm": 60.0},
    "pretrain": {"steps": 7, "objective": {"temperature": 0.1}},
    "bundle": WORDS,
}
CONFIG = parse(BundleConfig, WORDS, "wholebody.bundle")
NUMBERS = {"value": 0.91, "low": 0.85, "high": 0.95, "random": 0.7, "difference": 0.21, "difference_low": 0.1,
           "difference_high": 0.3}  # fmt: skip

FIGURES_OF_A_HEAD = {
    "linear_auc": {"value": 0.9, "low": 0.8, "high": 0.95, "random": 0.7},
    "brier": {"value": 0.1, "low": 0.05, "high": 0.15},
    "ece": {"value": 0.02, "low": 0.01, "high": 0.04},
}


def _cohort() -> pd.DataFrame:
    rows = [
        ("s1", "p1", "pretrain", "lidc", "CC BY 3.0", "10.7937/A"),
        ("s2", "p1", "pretrain", "lidc", "CC BY 3.0", "10.7937/A"),
        ("s3", "p2", "pretrain", "phantom", "Apache-2.0", ""),
        ("s4", "p3", "evaluation", "phantom", "Apache-2.0", ""),
        ("s5", "p4", "pretrain", "refused", "CC BY-NC 4.0", ""),
    ]
    return pd.DataFrame(rows, columns=["series", "patient", "role", "collection", "licence", "doi"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose stages before the bundle are done."""
    data, cohort = tmp_path / "data" / "wholebody", _cohort()
    write_table(data / "cohort" / "cohort.parquet", cohort)
    attribution = cohort[["collection", "licence", "doi"]].drop_duplicates()
    attribution["citation"] = ["Cite me." if name == "lidc" else "" for name in attribution["collection"]]
    write_table(data / "cohort" / "attribution.parquet", attribution)
    for shard in (0, 1):
        write_table(data / "acquire" / str(shard) / "receipt.parquet", cohort.iloc[shard::2])
    curated = cohort[["series", "patient", "role"]].assign(status=["accepted"] * 4 + ["rejected"])
    write_table(data / "curate" / "curated.parquet", curated)
    series = [{"series": "s5", "name": "DOE_JANE/scan 3", "source": "dicom", "role": "pretrain", "status": "rejected",
               "reason": "gantry_tilt", "detail": "DOE_JANE"}]  # fmt: skip
    write_json(data / "curate" / "funnel.json",
               {"in": 5, "accepted": 4, "not_ct": 0, "rejected": {"gantry_tilt": 1},
                "accepted_by_role": {"evaluation": 1, "pretrain": 3}, "series": series})  # fmt: skip
    write_json(data / "curate" / "profile.json", {"series": 3})
    write_text(data / "features" / "encoder" / "encoder.json", "{}\n")
    save_file({"weight": np.ones(3, np.float32)}, data / "features" / "encoder" / "encoder.safetensors")
    metrics = {"evaluation_data": "d1", "tasks": {"organs": {"linear_auc": NUMBERS}},
               "not_evaluated": {"lidc_nodules": "not configured"}}  # fmt: skip
    write_json(data / "evaluate" / "metrics.json", metrics)
    rows = [("organs", "encoder", "linear_auc", 0.91, 0.85, 0.95, 30, 12),
            ("organs", "random_0", "linear_auc", 0.7, 0.6, 0.8, 30, 12),
            ("organs", "histogram", "linear_auc", 0.64, 0.5, 0.75, 30, 12)]  # fmt: skip
    columns = ["task", "method", "figure", "value", "low", "high", "n_cases", "n_patients"]
    write_text(data / "evaluate" / "plots" / "figures.csv", pd.DataFrame(rows, columns=columns).to_csv(index=False))
    write_text(data / "evaluate" / "report.html", "<html></html>\n")
    write_json(data / "gate" / "decision.json", _decision("pass"))
    write_json(data / "champion" / "verdict.json", {"verdict": "pass"})
    write_text(tmp_path / "infra" / "pins" / "pretrain.txt", "numpy==2.0.0\n")
    write_text(tmp_path / "components" / "a.py", "x = 1\n")
    return tmp_path


def _decision(verdict: str) -> dict[str, Any]:
    leakage = {"gate": "leakage", "figure": 0, "bound": 0, "verdict": "pass", "detail": "0 patients shared"}
    floor = {"gate": "floor organs linear_auc", "figure": 0.91, "bound": 0.99, "verdict": verdict, "detail": "a|b"}
    return {"verdict": verdict, "gates": [leakage, floor]}


def _make(root: Path, folder: str = "wholebody", parameters: dict[str, Any] = PARAMETERS) -> Path:
    out = root / "releases" / folder
    sources = Sources.of_line(root / "data" / "wholebody", (0, 1))
    make_bundle("wholebody", CONFIG, parameters, sources, out, root)
    return out


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_release_holds_all_its_parts_and_verifies(root: Path) -> None:
    release = _make(root)
    manifest = verify_bundle(release)
    assert sorted(manifest.files) == [
        "MODEL_CARD.md", "acceptance.json", "decision.json", "encoder.json", "encoder.safetensors", "figures.csv",
        "funnel.json", "licences.csv", "metrics.json", "preprocess.json", "profile.json", "report.html",
    ]  # fmt: skip
    assert sorted(manifest.inputs) == [
        "code", "data/cohort", "data/curated", "data/receipt-0", "data/receipt-1", "lock", "parameters",
    ]  # fmt: skip
    assert read_json(release / "preprocess.json") == PARAMETERS["preprocess"]
    judged = {"headers": PARAMETERS["screen"], "volumes": PARAMETERS["curate"], "mixed_series": "whole"}
    assert read_json(release / "acceptance.json") == judged


def with_heads(root: Path) -> Path:
    """A project with a real encoder, and heads of two of its tasks."""
    data = root / "data" / "wholebody"
    tiny_embedder().save(data / "features" / "encoder")
    encoder = sha256_file(data / "features" / "encoder" / "encoder.safetensors")
    for part in ("findings/ich", "organs"):
        task, _, name = part.partition("/")
        told = description(dim=8, encoder=encoder, task=task, part=part, figures=FIGURES_OF_A_HEAD)
        Head(told, linear(dim=8)).write(data / "tasks" / task / "head" / name)
    return root


def test_a_served_tasks_heads_are_in_the_release_and_on_its_card(root: Path) -> None:
    release = _make(with_heads(root))
    files = verify_bundle(release).files
    assert [name for name in files if name.startswith("heads/")] == [
        "heads/findings/ich/head.json", "heads/findings/ich/head.safetensors", "heads/organs/head.json",
        "heads/organs/head.safetensors",
    ]  # fmt: skip
    assert list(load_heads(release)) == ["findings/ich", "organs"]
    card = (release / "MODEL_CARD.md").read_text()
    assert "| organs | a point | a, b, c | 1, 1 | 0.900 [0.800, 0.950] | 0.700 | 0.100 [0.050, 0.150] |" in card
    assert "- organs: None." in card
    write_text(release / "heads" / "organs" / "head.json", "{}\n")
    with pytest.raises(UserError, match=r"heads/organs/head.json: differs from the manifest"):
        verify_bundle(release)


def test_a_head_of_another_encoder_is_no_release(root: Path) -> None:
    with_heads(root)
    folder = root / "data" / "wholebody" / "features" / "encoder"
    untrained_embedder(tiny_embedder().config, 3).save(folder)
    with pytest.raises(UserError, match=r"^head findings/ich: was fitted on encoder"):
        _make(root)
    assert not (root / "releases" / "wholebody").exists()


def test_the_card_of_a_line_without_a_served_head_says_so(root: Path) -> None:
    assert "None: no task of this line has `serve: true`." in (_make(root) / "MODEL_CARD.md").read_text()


def test_the_same_inputs_give_the_same_bytes(root: Path) -> None:
    assert _bytes(_make(root, "one")) == _bytes(_make(root, "two"))


def test_a_changed_parameter_gives_another_digest(root: Path) -> None:
    first = verify_bundle(_make(root, "one"))
    second = verify_bundle(_make(root, "two", {**PARAMETERS, "pretrain": {"steps": 8}}))
    assert first.digest != second.digest
    assert {k for k in first.inputs if first.inputs[k] != second.inputs[k]} == {"parameters"}


def test_a_failed_gate_is_named_and_the_earlier_release_stays(root: Path) -> None:
    release = _make(root)
    before = _bytes(release)
    write_json(root / "data" / "wholebody" / "gate" / "decision.json", _decision("fail"))
    with pytest.raises(UserError, match=r"gate failed: floor organs linear_auc$"):
        _make(root)
    assert _bytes(release) == before
    assert sorted(p.name for p in release.parent.iterdir()) == ["wholebody"]


def test_a_promotion_changes_no_byte_of_the_release_that_it_promotes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Release, promote, and the stages again: the champion's name is that of the release, then as later."""
    monkeypatch.chdir(root)
    bound = {"task": "organs", "figure": "linear_auc", "tolerance": 0.02}
    (root / "params.yaml").write_text(yaml.safe_dump(params(champion=[bound])))
    write_json(root / "infra" / "champions" / "wholebody.json", {"champion": None})
    write_json(root / "data" / "wholebody" / "drift" / "drift.json", {"judged": False})
    write_json(root / "data" / "wholebody" / "rival" / "rival.json", {"champion": None, "tasks": {}})
    Repo.init(str(root), no_scm=True)
    champion_stage.run("wholebody")
    first = verify_bundle(_make(root))
    attestation = root / promoting.attest("wholebody")
    assert (read_json(attestation)["bundle"], read_json(attestation)["champion"]) == (first.digest, None)
    before = _bytes(root / "releases" / "wholebody")

    promoting.promote("wholebody")
    champion_stage.run("wholebody")
    assert verify_bundle(_make(root)) == first
    assert _bytes(root / "releases" / "wholebody") == before
    assert read_json(root / "infra" / "champions" / "wholebody.json")["champion"]["bundle"] == first.digest
    promoting.attest("wholebody")
    assert read_json(attestation)["champion"] == first.digest
    assert [gate["bound"] for gate in read_json(attestation)["gates"]] == [0.89]


def test_a_champion_that_is_better_leaves_the_earlier_release(root: Path) -> None:
    before = _bytes(_make(root))
    write_json(root / "data" / "wholebody" / "champion" / "verdict.json", {"verdict": "fail"})
    with pytest.raises(UserError, match=r"no release: worse than the champion; see .*data/wholebody/champion$"):
        _make(root)
    assert _bytes(root / "releases" / "wholebody") == before


@pytest.mark.parametrize(
    "part", ["features/encoder/encoder.safetensors", "gate/decision.json", "acquire/1/receipt.parquet"]
)
def test_a_missing_part_is_named_and_nothing_is_written(root: Path, part: str) -> None:
    (root / "data" / "wholebody" / part).unlink()
    with pytest.raises(UserError, match=rf"{part}: missing"):
        _make(root)
    assert not (root / "releases").exists()


def test_licences_count_accepted_series_by_collection(root: Path) -> None:
    lines = (_make(root) / "licences.csv").read_text().splitlines()
    assert lines == [
        "collection,licence,doi,pretraining_series,pretraining_patients,evaluation_series,citation",
        "lidc,CC BY 3.0,10.7937/A,2,1,0,Cite me.",
        "phantom,Apache-2.0,,1,1,1,",
    ]


def test_the_card_says_what_the_release_is_worth(root: Path) -> None:
    card = (_make(root) / "MODEL_CARD.md").read_text()
    for said in (
        "# Test encoder", "Not for clinical use", "| gantry_tilt | 1 |", "| lidc | CC BY 3.0 | 10.7937/A | 2 | 1 | 0 |",
        "| organs | linear_auc | 12 | 0.910 [0.850, 0.950] | 0.700 | 0.210 [0.100, 0.300] |",
        "- lidc: Cite me.", "| histogram 0.640 [0.500, 0.750] |",
        "lidc_nodules: not configured", "| floor organs linear_auc | 0.91 | 0.99 | pass | a\\|b |", "temperature: 0.1",
        "It was never trained.", "encoder.safetensors", "5 series were looked at, 4 accepted",
    ):  # fmt: skip
        assert said in card, said


@pytest.mark.parametrize(
    ("mode", "said"), [("machine", "on one kind of processor"), ("portable", "on every x86-64 processor with AVX2")]
)
def test_the_card_says_where_the_release_can_be_made_again(root: Path, mode: str, said: str) -> None:
    card = (_make(root, parameters={**PARAMETERS, "reproducible": mode}) / "MODEL_CARD.md").read_text()
    assert f"| Equal bytes when made again | {said} |" in card.splitlines()


def test_no_path_name_or_clock_of_the_machine_leaves_with_a_release(root: Path) -> None:
    for name, content in _bytes(_make(root)).items():
        assert str(root).encode() not in content, name
        assert b"DOE_JANE" not in content, name


def test_the_card_and_parameters_of_both_lines_parse() -> None:
    blocks = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    for line in ("wholebody", "head"):
        assert parse(BundleConfig, blocks[line]["bundle"], f"{line}.bundle").name == f"ctfoundry-{line}"
