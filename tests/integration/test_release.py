"""A release from end to end: Prefect, DVC, Great Expectations, Ray and BentoML themselves, on small parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml
from checkout import ROOT, Checkout, one_shard, small
from cryptography.hazmat.primitives.asymmetric import ec
from picklescan.scanner import scan_directory_path
from team_keys import private_pem, public_pem

from components.bundle.manifest import verify_bundle
from components.bundle.signature import verify_release
from components.bundle.trust import trusted_keys
from components.files import sha256_tree
from components.sources.phantom.faults import fault_named

TEAM = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module", params=["wholebody", pytest.param("head", marks=pytest.mark.slow)])
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str, str]:
    """A checkout after ``ctfoundry release``, its line, and what the command printed. Two shards, and one."""
    line = str(request.param)
    checkout = Checkout(tmp_path_factory.mktemp(line), small if line == "wholebody" else one_shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTFOUNDRY_SIGNING_KEY", private_pem(TEAM).decode())
        done = checkout.run("ctfoundry", "release", "--line", line, "--source", "phantom")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return checkout, line, done.stdout


def test_the_run_ends_in_a_table_of_what_was_made(released: tuple[Checkout, str, str]) -> None:
    checkout, line, printed = released
    manifest = verify_bundle(checkout.folder / "releases" / line)
    for said in ("series in", "no CT", "leakage", f"ctfoundry-{line}:", manifest.digest, "report.html"):
        assert said in printed
    assert next((checkout.folder / "reports" / line / "data_docs").rglob("data_docs/*/index.html")).is_file()


def test_a_release_is_signed_and_nothing_in_it_can_run(released: tuple[Checkout, str, str], tmp_path: Path) -> None:
    checkout, line, printed = released
    folder = checkout.folder / "releases" / line
    (tmp_path / "team.pub").write_bytes(public_pem(TEAM))
    (bento,) = (checkout.folder / ".ctfoundry" / "bentoml" / "bentos").glob(f"ctfoundry-{line}/*/src/bundle")
    for signed in (folder, bento):
        key = verify_release(signed, trusted_keys(tmp_path / "team.pub")).key
        assert key is not None
        assert key.name == "team"
    assert f"releases/{line}.sig" in printed
    assert scan_directory_path(folder).issues_count == 0


def test_a_scan_is_embedded_with_the_release_as_it_was_made(released: tuple[Checkout, str, str]) -> None:
    checkout, line, _ = released
    z, y, x = np.mgrid[:40, :100, :100] - np.array([20, 50, 50])[:, None, None, None]
    hu = np.where((y / 40) ** 2 + (x / 45) ** 2 + (z / 30) ** 2 < 1, 40, -1000).astype(np.int16)
    nib.save(nib.Nifti1Image(hu.T, np.diag([2.0, 2.0, 4.0, 1.0])), checkout.folder / "scan.nii.gz")
    done = checkout.run("ctfoundry", "embed", "--line", line, "scan.nii.gz")
    (checkout.folder / "scan.nii.gz").unlink()
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["model"]["digest"] == verify_bundle(checkout.folder / "releases" / line).digest
    assert answer["dim"] == len(answer["embedding"]) > 0


def test_a_scan_is_segmented_on_its_own_grid(released: tuple[Checkout, str, str]) -> None:
    checkout, line, _ = released
    if line == "head":
        pytest.skip("its encoder sees whole scans")
    z, y, x = np.mgrid[:40, :100, :100] - np.array([20, 50, 50])[:, None, None, None]
    hu = np.where((y / 40) ** 2 + (x / 45) ** 2 + (z / 30) ** 2 < 1, 40, -1000).astype(np.int16)
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    nib.save(nib.Nifti1Image(hu.T, affine), checkout.folder / "scan.nii.gz")
    done = checkout.run("ctfoundry", "segment", "--line", line, "scan.nii.gz", "--out", "labels.nii.gz")
    assert done.returncode == 0, done.stderr
    answer, labels = json.loads(done.stdout), nib.load(checkout.folder / "labels.nii.gz")
    found = np.asarray(labels.dataobj)  # read now: the file goes
    for name in ("scan.nii.gz", "labels.nii.gz"):
        (checkout.folder / name).unlink()
    assert answer["part"] == "organs_segmented"
    assert labels.shape == hu.T.shape
    np.testing.assert_allclose(np.abs(labels.affine[:3, :3]), affine[:3, :3])
    for value, told in answer["structures"].items():
        assert told["volume_ml"] == pytest.approx((found == int(value)).sum() * 0.016, abs=1e-3)
    assert "| organs_segmented |" in (checkout.folder / "releases" / line / "MODEL_CARD.md").read_text()


def test_its_cases_are_shown_with_the_figures_of_its_evaluation(
    released: tuple[Checkout, str, str], tmp_path: Path
) -> None:
    checkout, line, _ = released
    done = checkout.run("ctfoundry", "cases", "--line", line, "--out", str(tmp_path / "cases"))
    assert done.returncode == 0, done.stderr  # the heads give what the tables have, or it ends
    page = (tmp_path / "cases" / "index.html").read_text()
    cases = json.loads(page.split('id="cases">')[1].split("</script>")[0])
    table = pd.read_parquet(checkout.folder / "data" / line / "evaluate" / "cases.parquet")
    own = table[(table["method"] == "encoder") & table["probe"].isin(["dice", "calibrated"])]
    assert {one["part"].split("/")[0] for one in cases} == {part.split("/")[0] for part in own["task"]}
    for one in cases:
        if one["kind"] == "segment":
            known = own[(own["task"] == one["part"]) & own["case"].str.startswith(f"{one['case']}/")]
            assert one["score"] == pytest.approx(known["score"].mean(), abs=1e-6)
            assert set(one["masks"]) == {"reference", "prediction"}


def test_every_planted_fault_is_caught_and_no_clean_series(released: tuple[Checkout, str, str]) -> None:
    checkout, line, _ = released
    data = checkout.folder / "data" / line
    cohort = pd.read_parquet(data / "cohort" / "cohort.parquet")
    curated = pd.read_parquet(data / "curate" / "curated.parquet")
    faults = {row["series"]: json.loads(row["plan"])["fault"] for row in cohort.to_dict("records")}
    assert sum(bool(f) for f in faults.values()) >= 0.2 * len(faults)
    for row in curated.to_dict("records"):
        fault = faults[row["series"]]
        if fault:
            assert fault_named(fault).reason in row["reason"].split(";"), f"{row['name']}: {fault} not caught"
        else:
            assert row["status"] == "accepted", f"{row['name']}: clean, but {row['reason']}"


def test_nothing_is_left_to_do_and_a_parameter_reruns_what_depends_on_it(released: tuple[Checkout, str, str]) -> None:
    checkout, line, _ = released
    target = f"bundle@{line}"
    again = checkout.run("dvc", "repro", target)
    assert "Data and pipelines are up to date" in again.stdout, again.stdout + again.stderr

    def hotter(content: dict[str, Any]) -> None:
        objective = content[line]["pretrain"]["objective"]
        block = objective if "temperature" in objective else objective["dino"]
        key = "temperature" if "temperature" in block else "student_temperature"
        block[key] = 0.2

    before = (checkout.folder / "params.yaml").read_text()
    checkout.edit(hotter)
    dry = checkout.run("dvc", "repro", "--dry", target).stdout
    (checkout.folder / "params.yaml").write_text(before)
    reruns = {text.split("'")[1].partition("@")[0] for text in dry.splitlines() if text.startswith("Running stage")}
    assert "pretrain" in reruns
    assert not reruns & {"cohort", "acquire", "screen", "preprocess", "curate"}


def test_a_promotion_changes_no_output_of_the_release_that_it_promotes(released: tuple[Checkout, str, str]) -> None:
    checkout, line, _ = released
    digest = verify_bundle(checkout.folder / "releases" / line).digest
    before = _outputs(checkout.folder / "dvc.lock")
    compared = checkout.folder / "data" / line / "champion" / "comparison.json"
    try:
        assert checkout.run("ctfoundry", "promote", "--line", line).returncode == 0
        tracked = json.loads((checkout.folder / "infra" / "champions" / f"{line}.json").read_text())
        assert tracked["champion"]["bundle"] == digest
        again = checkout.run("dvc", "repro", f"bundle@{line}")
        assert again.returncode == 0, again.stdout + again.stderr
        reruns = {text.split("'")[1] for text in again.stdout.splitlines() if text.startswith("Running stage")}
        assert reruns == {f"drift@{line}", f"rival@{line}", f"champion@{line}"}
        (again,) = [gate for gate in json.loads(compared.read_text())["gates"] if gate["gate"].startswith("champion")]
        assert (again["figure"], again["verdict"]) == (0.0, "pass"), "it is its own rival, case by case"
        forced = checkout.run("dvc", "repro", "--force", "--single-item", "--no-run-cache", f"bundle@{line}")
        assert forced.returncode == 0, forced.stdout + forced.stderr
        assert verify_bundle(checkout.folder / "releases" / line).digest == digest
        after = _outputs(checkout.folder / "dvc.lock")
        changed = {path for path in before if after[path] != before[path]}
        assert changed == {f"data/{line}/drift", f"data/{line}/rival", f"data/{line}/champion/comparison.json"}
    finally:
        assert checkout.run("ctfoundry", "promote", "--line", line, "--none").returncode == 0
        checkout.run("dvc", "repro", f"bundle@{line}")


def _outputs(lock: Path) -> dict[str, str]:
    stages = yaml.safe_load(lock.read_text())["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}


def test_a_gate_out_of_reach_fails_the_run_and_leaves_the_release(released: tuple[Checkout, str, str]) -> None:
    checkout, line, _ = released
    bundle = checkout.folder / "releases" / line
    digest, bentos = sha256_tree(bundle), _bentos(checkout.folder)
    before = (checkout.folder / "params.yaml").read_text()

    def unreachable(content: dict[str, Any]) -> None:
        content[line]["gate"]["floors"][0]["minimum"] = 1.0

    checkout.edit(unreachable)
    done = checkout.run("ctfoundry", "release", "--line", line)
    (checkout.folder / "params.yaml").write_text(before)
    assert done.returncode != 0
    assert "│ fail" in done.stdout  # the gates of this run, of which one was not met
    assert "no new bundle" in done.stdout
    assert "gate not met: " in done.stderr
    assert "bound 1" in done.stderr
    assert sha256_tree(bundle) == digest
    assert _bentos(checkout.folder) == bentos


def test_an_experiment_runs_where_only_one_line_was_ever_made(released: tuple[Checkout, str, str]) -> None:
    """The repository's lock file names the outputs of both lines; a machine may hold those of one."""
    checkout, line, _ = released
    lock = checkout.folder / "dvc.lock"
    other = {"wholebody": "head", "head": "wholebody"}[line]
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    mine = yaml.safe_load(lock.read_text())
    mine["stages"].update({name: stage for name, stage in stages.items() if f"@{other}" in name})
    lock.write_text(yaml.safe_dump(mine, sort_keys=False))
    checkout.git("add", "-A")
    checkout.git("commit", "-q", "-m", "both lines' lock")
    done = checkout.run("dvc", "exp", "run", "-S", f"{line}.gate.max_reject_rate=0.65", f"gate@{line}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Ran experiment(s)" in done.stdout
    changed = checkout.run("dvc", "params", "diff").stdout
    assert "max_reject_rate" in changed


def _bentos(folder: Path) -> set[str]:
    store = folder / ".ctfoundry" / "bentoml" / "bentos"
    return {p.relative_to(store).as_posix() for p in store.glob("*/*") if p.is_dir()}
