"""A site's data: a secret behind every pseudonym, and a root of each line's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from components.cohort.config import CohortConfig
from components.ct.keys import PUBLIC_KEY, patient_key
from components.errors import UserError
from components.registry import check_file
from components.settings import block_of, load_stage
from components.sources import roots
from components.sources.build import source_of
from components.sources.kinds import KINDS
from components.sources.lidc import COLUMNS
from components.sources.roots import record_root, root_of
from flows.parameters import pin
from flows.sources import pin_source

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parameters, and two archives."""
    monkeypatch.delenv("CTFOUNDRY_ROOT_DICOM", raising=False)
    shutil.copyfile(PARAMS, tmp_path / "params.yaml")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", [name for name, kind in KINDS.items() if kind.site])
@pytest.mark.parametrize(("key", "said"), [
    (None, "not set, which is not allowed"),
    ("", "not set, which is not allowed"),
    (PUBLIC_KEY, "9 bytes are not allowed"),
    ("x" * 15, "15 bytes are not allowed"),
])  # fmt: skip
def test_a_site_source_refuses_a_key_that_can_be_guessed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, source: str, key: str | None, said: str
) -> None:
    monkeypatch.delenv("CTFOUNDRY_PSEUDONYM_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("CTFOUNDRY_PSEUDONYM_KEY", key)
    config = load_stage(CohortConfig, "wholebody", "cohort").model_copy(update={"source": source})
    site = source_of(source, "wholebody", config)
    before = (checkout / "params.yaml").read_text()
    for run in (
        lambda: site.list_series(frozenset()),
        site.check,
        lambda: pin_source("wholebody", f"{source}:a" if KINDS[source].folder else source, None),
    ):
        with pytest.raises(UserError, match=f"CTFOUNDRY_PSEUDONYM_KEY: {said}.*openssl rand -hex 16") as caught:
            run()
        assert "\n" not in str(caught.value)
    assert (checkout / "params.yaml").read_text() == before
    assert not (checkout / ".ctfoundry").exists()


@pytest.mark.usefixtures("checkout")
def test_public_sources_need_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    pin_source("wholebody", "idc", None)
    pin_source("wholebody", "phantom", None)
    known = patient_key("4711")
    monkeypatch.setenv("CTFOUNDRY_PSEUDONYM_KEY", "")
    assert patient_key("4711") == known, "an empty key is none"
    monkeypatch.setenv("CTFOUNDRY_PSEUDONYM_KEY", "x" * 16)
    assert patient_key("4711") != known


@pytest.mark.usefixtures("secret")
def test_two_lines_are_made_from_two_archives(checkout: Path) -> None:
    pin_source("wholebody", "dicom:a", "none")
    pin_source("head", "dicom:b", "none")
    assert root_of("dicom", "wholebody") == checkout / "a"
    assert root_of("dicom", "head") == checkout / "b"
    content = yaml.safe_load((checkout / "params.yaml").read_text())
    assert content["wholebody"]["cohort"]["source_digest"] != content["head"]["cohort"]["source_digest"]
    assert str(checkout) not in (checkout / "params.yaml").read_text()


@pytest.mark.usefixtures("secret")
def test_a_tree_of_links_to_folders_is_a_source(checkout: Path) -> None:
    (checkout / "links").mkdir()
    (checkout / "links" / "site").symlink_to(checkout / "a")
    pin_source("wholebody", "dicom:links", "none")
    assert root_of("dicom", "wholebody") == checkout / "links"


@pytest.mark.usefixtures("secret")
def test_what_is_not_said_stays_as_it_is(checkout: Path) -> None:
    """`make release` without SOURCE is of what params.yaml says."""
    pin_source("wholebody", "dicom:a", "none")
    before = (checkout / "params.yaml").read_text()
    pin_source("wholebody", None, None)
    pin_source("wholebody", None, "none")
    assert (checkout / "params.yaml").read_text() == before


@pytest.mark.usefixtures("secret")
def test_roots_recorded_before_lines_had_their_own_are_of_every_line(checkout: Path) -> None:
    roots.ROOTS_FILE.parent.mkdir()
    roots.ROOTS_FILE.write_text(json.dumps({"dicom": str(checkout / "a"), "lidc_nodules": str(checkout / "b")}))
    assert root_of("dicom", "head") == root_of("dicom", "wholebody") == checkout / "a"
    record_root("dicom", checkout / "b", "head")
    assert root_of("dicom", "head") == checkout / "b"
    assert root_of("dicom", "wholebody") == checkout / "a"
    assert root_of("lidc_nodules") == checkout / "b"
    roots.ROOTS_FILE.write_text(json.dumps({"head": {"dicom": 7}}))
    with pytest.raises(UserError, match="root 'dicom' of line head: not configured"):
        root_of("dicom", "head")


@pytest.mark.usefixtures("secret")
def test_a_line_may_be_called_as_a_kind_of_source_that_came_later(checkout: Path) -> None:
    record_root("dicom", checkout / "a", "urls")
    assert root_of("dicom", "urls") == checkout / "a"
    with pytest.raises(UserError, match="root 'urls' of line head: not configured"):
        root_of("urls", "head")


@pytest.mark.usefixtures("checkout")
def test_the_environment_goes_before_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match="root 'dicom' of line head: not configured on this machine; set CTFOUNDRY_ROOT_"
    ):
        root_of("dicom", "head")
    record_root("dicom", tmp_path / "a", "head")
    monkeypatch.setenv("CTFOUNDRY_ROOT_DICOM", str(tmp_path / "b"))
    assert root_of("dicom", "head") == tmp_path / "b"
    monkeypatch.setenv("CTFOUNDRY_ROOT_HEAD_DICOM", str(tmp_path / "a"))
    assert root_of("dicom", "head") == tmp_path / "a"
    assert root_of("dicom", "wholebody") == tmp_path / "b"


@pytest.mark.usefixtures("secret")
def test_nifti_beside_patients_who_are_held_out_wants_to_know_whose_it_is(checkout: Path) -> None:
    (checkout / "lidc_nodules").mkdir()
    (checkout / "lidc_nodules" / "labels.csv").write_text(",".join(COLUMNS) + "\n")
    before = (checkout / "params.yaml").read_text()
    with pytest.raises(UserError, match=r"wholebody\.cohort\.nifti\.patient: null is not allowed .*'\{patient\}/\*\*'"):
        pin_source("wholebody", "nifti:a", None)
    assert (checkout / "params.yaml").read_text() == before
    pin_source("wholebody", "nifti:a", "none")
    assert "source: nifti" in (checkout / "params.yaml").read_text()


@pytest.mark.usefixtures("secret", "checkout")
def test_nifti_without_a_stated_patient_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    pin_source("head", "nifti:a", None)
    assert "every volume counts as a patient of its own" in capsys.readouterr().out


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize(
    ("source", "evaluation", "said"),
    [
        ("dicom:empty", None, "source dicom:empty: no file in it that can be read"),
        ("dicom:loop", None, "source dicom:loop: not a folder"),
        ("dicom:a.zip", None, "source dicom:a.zip: not a folder; put the zip into a folder"),
        ("dicom:nowhere", "lidc_nodules:nodules", "source dicom:nowhere: not a folder"),
        ("dicom:a", "lidc_nodules:a", "evaluation 'lidc_nodules:a' is not allowed"),
        ("dicom:a", "lidc_nodules:junk", "labels.csv is no table"),
    ],
)
def test_a_source_that_is_refused_leaves_no_trace(checkout: Path, source: str, evaluation: str, said: str) -> None:
    for name in ("empty", "nodules", "junk"):
        (checkout / name).mkdir()
    (checkout / "loop").symlink_to("loop")
    (checkout / "a.zip").touch()
    (checkout / "nodules" / "labels.csv").write_text(",".join(COLUMNS) + "\n")
    (checkout / "junk" / "labels.csv").touch()
    before = (checkout / "params.yaml").read_text()
    with pytest.raises(UserError, match=re.escape(said)):
        pin_source("wholebody", source, evaluation)
    assert (checkout / "params.yaml").read_text() == before
    assert not roots.ROOTS_FILE.exists()


@pytest.mark.usefixtures("secret")
def test_a_line_that_sees_no_nodules_takes_none(checkout: Path) -> None:
    (checkout / "nodules").mkdir()
    (checkout / "nodules" / "labels.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(UserError, match=r"with line head: no task of head\.tasks is of set lidc_nodules"):
        pin_source("head", "dicom:a", "lidc_nodules:nodules")


@pytest.mark.usefixtures("checkout")
def test_damaged_roots_are_named() -> None:
    roots.ROOTS_FILE.parent.mkdir()
    roots.ROOTS_FILE.write_text("{bad")
    with pytest.raises(UserError, match=r"^\.ctfoundry/roots\.json: damaged; remove it"):
        root_of("dicom", "head")


def test_gates_on_nodules_come_and_go_with_them(checkout: Path) -> None:
    """As the release of twelve real scans shows: without them it passes, no better than untrained encoders there."""
    folder = checkout / "nodules"
    folder.mkdir()
    (folder / "labels.csv").write_text(",".join(COLUMNS) + "\na.nii.gz,P,5,1,1,1\n")
    before = yaml.safe_load(PARAMS.read_text())["wholebody"]["gate"]
    pin_source("wholebody", None, f"lidc_nodules:{folder}")
    gates = yaml.safe_load(Path("params.yaml").read_text())["wholebody"]["gate"]
    check_file()
    added = [gate for gate in gates["better_than_random"] if gate not in before["better_than_random"]]
    assert [gate["task"] for gate in added] == ["lidc_nodules/calcification", "lidc_nodules/texture"]
    pin_source("wholebody", None, "none")
    check_file()
    assert Path("params.yaml").read_text() == PARAMS.read_text()


def test_a_gate_on_nodules_that_the_user_took_out_stays_out(checkout: Path) -> None:
    folder = checkout / "nodules"
    folder.mkdir()
    (folder / "labels.csv").write_text(",".join(COLUMNS) + "\na.nii.gz,P,5,1,1,1\n")
    pin_source("wholebody", None, f"lidc_nodules:{folder}")
    pin("wholebody", "gate", {"better_than_random": []})
    pin_source("wholebody", None, f"lidc_nodules:{folder}")
    assert block_of("wholebody", "gate")["better_than_random"] == []
