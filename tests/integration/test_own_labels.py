"""README's own labels, as a new user does it: a folder of DICOM and a column of 0 and 1, two commands, an answer."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import Checkout, keep, one_shard

from components.bundle.manifest import verify_bundle

# Sex, which their headers tell: a label that is true of these scans, and that nobody had to make up.
MALE = {f"sts_{number:03}": int(number in (1, 2, 6, 9)) for number in range(1, 13)}
TASK = "male"
SECRET = "a secret of the tests' own 0"  # sides follow from it: two men and four women are tested


def _only_what_this_is_about(content: dict[str, Any]) -> None:
    one_shard(content)
    keep(content, "wholebody", "organs")
    content["wholebody"]["cohort"]["phantom"]["evaluation_patients"] = 12


@pytest.fixture(scope="module")
def released(ct_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Checkout, dict[str, Any], str]]:
    """A checkout after the two commands; its parameters as they were before; what the second printed."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("CTFOUNDRY_PSEUDONYM_KEY", SECRET)
    checkout = Checkout(tmp_path_factory.mktemp("own"), _only_what_this_is_about)
    scans = tmp_path_factory.mktemp("site")
    for name in MALE:
        (scans / name).symlink_to(ct_root / "dicom" / name)
    rows = [f"{name.upper()},{male}" for name, male in MALE.items()]
    (scans / "labels.csv").write_text("\n".join(["PatientID,male", *rows]) + "\n")
    before = yaml.safe_load((checkout.folder / "params.yaml").read_text())
    try:
        for command in (
            f"set add site --scans dicom:{scans} --labels {scans}/labels.csv --key patient=PatientID --label male",
            "release",
        ):
            done = checkout.run("ctfoundry", *command.split())
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield checkout, before, done.stdout
    finally:
        monkeypatch.undo()


def test_it_takes_ten_lines_of_yaml_at_most(released: tuple[Checkout, dict[str, Any], str]) -> None:
    checkout, before, _ = released
    after = yaml.safe_load((checkout.folder / "params.yaml").read_text())
    blocks = {"sets": after["wholebody"]["sets"], "tasks": {TASK: after["wholebody"]["tasks"].pop(TASK)}}
    assert len(yaml.safe_dump(blocks, default_flow_style=None, width=200).splitlines()) <= 10
    after["wholebody"]["sets"] = before["wholebody"]["sets"]
    assert after["tasks"].pop(f"wholebody-{TASK}") == {"line": "wholebody", "task": TASK}
    assert after == before, "nothing else was written"


def test_a_table_of_aucs_stands_in_the_report(released: tuple[Checkout, dict[str, Any], str]) -> None:
    checkout, _, _ = released
    evaluated = checkout.folder / "data" / "wholebody" / "evaluate"
    numbers = json.loads((evaluated / "metrics.json").read_text())["tasks"][TASK]["linear_auc"]
    assert 0 <= numbers["low"] <= numbers["value"] <= numbers["high"] <= 1
    page = (evaluated / "report.html").read_text()
    assert f'id="task-{TASK}"' in page
    assert f"{numbers['value']:.3f} [{numbers['low']:.3f}, {numbers['high']:.3f}]" in page
    for beside in ("Untrained encoders", "HU histogram", "Radiomics"):
        assert beside in page


def test_its_head_is_in_the_release_and_answers_for_a_scan(
    released: tuple[Checkout, dict[str, Any], str], ct_root: Path
) -> None:
    checkout, _, printed = released
    bundle = checkout.folder / "releases" / "wholebody"
    digest = verify_bundle(bundle).digest
    assert digest in printed
    card = (bundle / "MODEL_CARD.md").read_text()
    assert f"`{TASK}`" in card or f"| {TASK}" in card
    with zipfile.ZipFile(checkout.folder / "series.zip", "w") as archive:
        for file in sorted((ct_root / "dicom" / "sts_002").iterdir()):
            archive.write(file, file.name)
    done = checkout.run("ctfoundry", "classify", "series.zip")
    (checkout.folder / "series.zip").unlink()
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["model"]["digest"] == digest
    found = answer["answers"][TASK]
    assert set(found["probabilities"]) == {"0", "1"}
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found["limits"], "twelve patients are few"
    assert "STS_002" not in done.stdout
