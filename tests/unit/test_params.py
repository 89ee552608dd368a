"""``params.yaml`` mistakes end in one line: key, value, what is allowed, nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.registry import check_file
from components.screen.config import ScreenConfig
from components.settings import LINES, ParamsError, load_stage, shards

ROOT = Path(__file__).resolve().parents[2]


def changed(tmp_path: Path, keys: tuple[str, ...], value: object) -> Path:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    block = content
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_file_in_the_repository_is_valid() -> None:
    check_file(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("wholebody", "screen", "min_instance"), 3, "did you mean 'min_instances'?"),
        (("wholebody", "screen", "min_instances"), "many", "wholebody.screen.min_instances: 'many' is not allowed"),
        (("wholebody", "screen", "min_instances"), 1, "greater than or equal to 2"),
        (("wholebody", "preprocess", "orientation"), "XYZ", "one of R/L, one of A/P, one of S/I"),
        (("wholebody", "pretrain", "input", "windows"), [[0.0, 40_000.0]], "less than or equal to 32767"),
        (("wholebody", "pretrain", "input", "windows"), [], "should have at least 1 item"),
        (("wholebody", "preprocces"), {}, "did you mean 'preprocess'?"),
        (("wholebodi",), {}, "did you mean 'wholebody'?"),
        (("head", "cohort", "phantom", "fault_shar"), 0.1, "did you mean 'fault_share'?"),
        (("shards",), [1, 2], "shards: [1, 2] is not allowed"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, keys: tuple[str, ...], value: object, said: str) -> None:
    with pytest.raises(ParamsError) as caught:
        check_file(changed(tmp_path, keys, value))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path, ("wholebody", "screen", "min_instances"), "many")
    content = yaml.safe_load(path.read_text())
    content["head"]["curate"]["no_such"] = 1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as caught:
        check_file(path)
    assert len(str(caught.value).splitlines()) == 2


def test_configs_are_frozen(tmp_path: Path) -> None:
    config = load_stage(ScreenConfig, LINES[0], "screen", ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.min_instances = 3  # type: ignore[misc]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="not found"):
        shards(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="not valid YAML"):
        shards(tmp_path / "params.yaml")
