"""From an answer back, from a patient forward; releases listed and compared; as they are typed."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from published import LINE, Team, forget_cache, git

from components.ct.keys import patient_key, series_key, uid_key
from flows import cli
from flows.promotion.tags import versions
from flows.promotion.uses import of_patient, of_series, uses


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """Three releases; the last one began with the first one's weights. The first two were champions."""
    team = Team(tmp_path_factory.mktemp("team"), signed=False)
    first = team.publish("v1.0.0", 0.8, {"anna": "pretrain", "ben": "evaluation"})
    team.publish("v1.1.0", 0.9, {"ben": "pretrain", "carl": "pretrain"}, steps=2)
    team.publish("v2.0.0", 0.95, {"carl": "pretrain"}, steps=2, start=first.files["encoder.safetensors"])
    clone = team.clone("dora")
    (clone / ".ctfoundry").mkdir()
    forget_cache(clone)
    team.dora = clone  # type: ignore[attr-defined]
    return team


@pytest.fixture
def dora(team: Team, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's clone, into which nothing was pulled yet."""
    clone: Path = team.dora  # type: ignore[attr-defined]
    monkeypatch.chdir(clone)
    return clone


def ctfoundry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ctfoundry", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_a_patient_is_found_wherever_they_were_trained_or_evaluated_on(dora: Path) -> None:
    published = versions(LINE)
    found = {use.version.version: use.how for use in uses(of_patient("anna"), published)}
    assert found == {"v1.0.0": "pretraining", "v2.0.0": "began with the weights of head@v1.0.0"}
    found = {use.version.version: use.how for use in uses(of_patient(patient_key("ben")), published)}
    assert found == {"v1.0.0": "evaluation", "v1.1.0": "pretraining"}
    for name in ("1.2.carl", series_key("1.2.carl"), uid_key("1.2.carl")):
        assert [use.version.version for use in uses(of_series(name), published)] == ["v1.1.0", "v2.0.0"]
    assert uses(of_patient("nobody"), published) == []


def test_an_answer_leads_to_its_tag_commit_parameters_and_licences(
    team: Team, dora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    version = versions(LINE)[1]
    output = tmp_path / "lineage"
    code, out, _ = ctfoundry(monkeypatch, capsys, "lineage", "--digest", version.digest[:12], "--output", str(output))
    assert code == 0
    for told in ("version: head@v1.1.0", version.digest, version.commit, "CC-BY-4.0", "2 for pretrain"):
        assert told in out
    assert yaml.safe_load((output / "parameters.yaml").read_text()) == {LINE: {"pretrain": {"steps": 2}}}
    table = pd.read_csv(output / "series.csv")
    assert sorted(table["patient"]) == sorted([patient_key("ben"), patient_key("carl")])
    assert set(table["licence"]) == {"CC-BY-4.0"}
    code, _, err = ctfoundry(monkeypatch, capsys, "lineage", "--digest", "0123456789")
    assert (code, err) == (1, "ctfoundry: digest 0123456789: of no published release; it may be of one that was never "
                              "published\n")  # fmt: skip
    assert ctfoundry(monkeypatch, capsys, "lineage", "--digest", "12")[0] == 1


def test_releases_are_listed_shown_and_compared(
    team: Team, dora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ctfoundry(monkeypatch, capsys, "promote", LINE, "v1.0.0", "--reason", "first")[0] == 0
    assert ctfoundry(monkeypatch, capsys, "promote", LINE, "v1.1.0", "--reason", "better")[0] == 0
    code, out, _ = ctfoundry(monkeypatch, capsys, "releases", "list", LINE)
    rows = [row for row in out.splitlines() if "│ v" in row]
    assert code == 0
    assert [row.split("│")[1].strip() for row in rows] == ["v2.0.0", "v1.1.0", "v1.0.0"]
    assert "champion since" in rows[1]
    assert "was champion from" in rows[2]
    code, out, _ = ctfoundry(monkeypatch, capsys, "releases", "show", LINE, "v1.0.0")
    assert code == 0
    assert "0.8000" in out
    assert "0.7000 to 0.9000" in out
    (row,) = (row for row in out.splitlines() if "pretrain.steps" in row)
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["pretrain.steps", "2", "1"]
    code, out, _ = ctfoundry(monkeypatch, capsys, "releases", "diff", LINE, "v1.0.0", "v1.1.0")
    assert code == 0
    for told in ("pretrain.steps", "Code: the same", "rejected: no_body", "nlst, CC-BY-4.0", "+0.1000",
                 "0.9000 [0.8000, 1]"):  # fmt: skip
        assert told in out, told


def test_a_withdrawal_names_releases_and_what_to_run_and_changes_nothing(
    team: Team, dora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ctfoundry(monkeypatch, capsys, "promote", LINE, "v1.1.0", "--reason", "better")
    before = git(team.origin, "for-each-ref")
    code, out, _ = ctfoundry(monkeypatch, capsys, "withdraw", LINE, "--patient", "ben")
    assert code == 0
    assert "in 2 of 3 releases" in out
    assert "ctfoundry rollback head v2.0.0" in out, "the newest release without it"
    assert f"ctfoundry lineage head --series {series_key('1.2.ben')}" in out
    erased = next(row for row in out.splitlines() if "git push origin --delete" in row)
    assert "refs/tags/head@v1.0.0 refs/tags/head@v1.1.0 refs/tags/head#champion#" in erased, "stage tags keep data, too"
    assert "head@v2.0.0" not in erased
    assert "ben" not in out.replace("head", ""), "whom it is about stays a pseudonym"
    code, out, _ = ctfoundry(monkeypatch, capsys, "withdraw", LINE, "--patient", "anna")
    assert "ctfoundry rollback" not in out, "the champion has nothing of anna"
    assert git(team.origin, "for-each-ref") == before


def test_without_publications_or_a_remote_one_line_says_so(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = team.clone("erik")
    monkeypatch.chdir(alone)
    (alone / ".ctfoundry").mkdir()
    git(alone, "remote", "rename", "origin", "elsewhere")
    code, _, err = ctfoundry(monkeypatch, capsys, "releases", "list", LINE)
    assert code == 1
    assert err.startswith("ctfoundry: git remote 'origin': not there;")
    git(alone, "tag", "--delete", *git(alone, "tag").split())
    code, _, err = ctfoundry(monkeypatch, capsys, "releases", "list", LINE, "--offline")
    assert (code, err) == (
        1,
        "ctfoundry: line head: nothing is published yet: no tag head@v<number> with an annotation\n",
    )
