"""A line of one's own: written by a command, complete, and the shipped ones untouched."""

from __future__ import annotations

import argparse
import errno
import shutil
from pathlib import Path

import pytest
import yaml

from components.errors import UserError
from components.files import write_text
from components.registry import check_file
from components.settings import ParamsError, lines, read_yaml
from flows.lines import _list, chosen_line, new_line


@pytest.fixture
def checkout(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml", "components/pretrain/recipes", "infra/champions"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (project / name).is_dir() else shutil.copy)(project / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(checkout: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(checkout.rglob("*")) if path.is_file()}


def test_a_line_is_its_originals_block_under_another_name(checkout: Path) -> None:
    before, text = read_yaml(), Path("params.yaml").read_text()
    new_line("lungs", "head")
    after = read_yaml()
    assert lines() == ("wholebody", "head", "lungs")
    assert after["lungs"].pop("bundle") | {"name": 0, "title": 0} == after["head"]["bundle"] | {"name": 0, "title": 0}
    assert after["lungs"] == {key: value for key, value in after["head"].items() if key != "bundle"}
    assert after["tasks"] == before["tasks"] | {
        f"lungs-{task}": {"line": "lungs", "task": task} for task in before["head"]["tasks"]
    }
    others = [key for key in before if key not in ("lines", "tasks")]
    assert {key: after[key] for key in others} == {key: before[key] for key in others}
    kept = [line for line in Path("params.yaml").read_text().splitlines() if "{line: lungs, task: " not in line]
    assert "\n".join(kept).startswith(text.replace("[wholebody, head]", "[wholebody, head, lungs]").rstrip())
    assert "# What the line is for, by the voxels: heads." in Path("params.yaml").read_text().split("\nlungs:\n")[1]
    assert "data/lungs/evaluate/primary.json" in yaml.safe_load(Path("dvc.yaml").read_text())["metrics"]
    assert '"champion": null' in Path("infra/champions/lungs.json").read_text()
    check_file()


@pytest.mark.parametrize(("recipe", "sees", "steps"), [("ct_fm", "crop", 250_000), ("fm_ct", "scan", 250_000)])
def test_a_line_of_a_recipe_is_published_sizes_on_the_shipped_data(
    recipe: str, sees: str, steps: int, checkout: Path
) -> None:
    new_line("published", recipe)
    block = read_yaml()["published"]
    assert (block["pretrain"]["steps"], block["pretrain"]["input"]["sees"]) == (steps, sees)
    assert block["reproducible"] == "machine", "bfloat16 differs between processors"
    assert block["bundle"]["name"] == "ctfoundry-published"
    new_line("second", "published")
    assert read_yaml()["second"]["pretrain"] == block["pretrain"]
    check_file()


def test_comments_explain_the_values_beside_them(checkout: Path) -> None:
    new_line("published", "ct_fm")
    block = Path("params.yaml").read_text().split("\npublished:\n")[1].splitlines()
    assert "  reproducible: machine" in block, "the comment was about portable"
    assert "    device: cuda # ours: ends where a worker has no GPU" in block
    assert "    unreadable: stop  # or skip: another volume is seen in its place, and it is counted" in block


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_what_cannot_be_written_leaves_nothing_half_written(
    refused: int, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = written(checkout), []

    def write(path: Path, text: str) -> None:
        seen.append(path)
        if len(seen) == refused + 1:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        write_text(path, text)

    monkeypatch.setattr("flows.lines.write_text", write)
    with pytest.raises(OSError, match="Read-only"):
        new_line("lungs", "head")
    assert written(checkout) == before


@pytest.mark.parametrize(
    ("name", "origin", "told"),
    [
        ("Lungs", "head", "line 'Lungs' is not allowed: a-z, 0-9 and _"),
        ("../x", "head", "is not allowed: a-z, 0-9 and _"),
        ("shards", "head", "line 'shards' is not allowed"),
        ("null", "head", "line 'null' is not allowed"),
        ("true", "head", "nor what YAML reads as something else than text, such as true"),
        ("l" * 41, "head", "at most 40 characters"),
        ("dicom", "head", "line 'dicom' is not allowed"),
        ("head", "wholebody", "params.yaml has one of this name"),
        ("lungs", "hed", "'hed' is not allowed: one of the lines wholebody, head or of the recipes ct_fm, fm_ct"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_named_and_nothing_is_written(name: str, origin: str, told: str, checkout: Path) -> None:
    before = written(checkout)
    with pytest.raises(UserError) as error:
        new_line(name, origin)
    assert told in str(error.value)
    assert written(checkout) == before


def test_a_champion_of_an_earlier_line_of_this_name_is_not_taken_over(checkout: Path) -> None:
    Path("infra/champions/lungs.json").write_text('{"champion": {"bundle": "0"}}')
    before = written(checkout)
    with pytest.raises(UserError, match="holds a champion"):
        new_line("lungs", "head")
    assert written(checkout) == before


def test_a_faulty_original_is_not_copied(checkout: Path) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("volumes_per_step: 8", "volumes_per_step: 7"))
    before = written(checkout)
    with pytest.raises(ParamsError, match="volumes_per_step 7 must be a multiple"):
        new_line("lungs", "head")
    assert written(checkout) == before


@pytest.mark.parametrize(("stage", "origin"), [("bundle", "wholebody"), ("pretrain", "ct_fm")])
def test_an_original_that_lacks_a_block_is_not_copied(stage: str, origin: str, checkout: Path) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    del content["wholebody"][stage]
    Path("params.yaml").write_text(yaml.safe_dump(content))
    before = written(checkout)
    with pytest.raises(ParamsError, match=f"wholebody.{stage}: missing"):
        new_line("lungs", origin)
    assert written(checkout) == before


def test_a_command_is_about_the_first_line_unless_told_otherwise(checkout: Path) -> None:
    assert (chosen_line(None), chosen_line("head")) == ("wholebody", "head")
    with pytest.raises(ParamsError, match="line 'hed' is not allowed: use one of wholebody, head; did you mean 'head'"):
        chosen_line("hed")


def test_the_lines_are_listed_with_what_they_see_and_learn(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_line("lungs", "wholebody")
    assert _list(argparse.Namespace()) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "lungs" in line)
    for word in ("phantom", "crop", "segres", "within_volume", "organs, lesions, stability, locate, clusters"):
        assert word in row
