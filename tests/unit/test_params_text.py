"""``params.yaml`` as a text: what is read of it is what DVC reads, and a file that is none is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from components.settings import ParamsError, read_yaml, shards

ROOT = Path(__file__).resolve().parents[2]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(
        ParamsError, match=r"not found; run from the project's root, or bring it back with `git checkout"
    ):
        shards(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="not valid YAML"):
        shards(tmp_path / "params.yaml")


SCALARS = [
    "0200",
    "1:30",
    "1:30.5",
    "on",
    "off",
    "yes",
    "no",
    "y",
    "n",
    "true",
    "True",
    "TRUE",
    "false",
    "1e-3",
    "1e-05",
    "1E5",
    "1.0e-3",
    "12e03",
    ".inf",
    "-.inf",
    "+.inf",
    ".nan",
    ".5",
    "5.",
    "-.5",
    "0o17",
    "0x1F",
    "0b11",
    "1_000",
    "007",
    "+3",
    "-0",
    "1.2.3",
    "~",
    "null",
    "Null",
    "NULL",
    "none",
    "abc",
    "0.0",
    "3.0",
    "-1.5e+3",
]


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_what_dvc_takes_it_for(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(f"a: {text}\n")
    ours, theirs = read_yaml(tmp_path / "params.yaml")["a"], YAML(typ="safe", pure=True).load(f"a: {text}\n")["a"]
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


def test_what_is_shipped_means_the_same_in_every_dialect() -> None:
    for path in (ROOT / "params.yaml", *(ROOT / "components" / "pretrain" / "recipes").glob("*.yaml")):
        assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: \xe9\n", "not UTF-8 text: byte 4 is 0xe9"),
        ("a: 1\n".encode("utf-16"), "not UTF-8 text"),
        (b"a: " + b"1" * 5000, "not valid YAML"),
        (b"a: &a {b: *a}\n", "blocks within blocks without end"),
        (b"a: " + b"[" * 3000, "not valid YAML"),
        (b"a: {b: 1, b: 2}\n", "key 'b' is there twice"),
        (b"a: 1\nb: 2\na: 3\n", "key 'a' is there twice"),
        (b"a: 0x" + b"1" * 5000, "not valid YAML"),
        (b"a: !!bool maybe\n", "not valid YAML"),
        (b"a: !!timestamp 2020\n", "not valid YAML: could not determine a constructor"),
        (b"%YAML 1.1\n---\na: 0200\n", "only YAML 1.2 is allowed"),
    ],
)
def test_a_file_that_is_no_yaml_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ParamsError) as caught:
        read_yaml(tmp_path / "params.yaml")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"cannot be read: Is a directory$"):
        read_yaml(tmp_path)


def test_a_merged_block_may_be_merged_again_before_it_is_read(tmp_path: Path) -> None:
    text = "base: &base {b: 1}\nx: {p: {q: &a {<<: *base, b: 2}}}\nz: {<<: *a}\n"
    (tmp_path / "params.yaml").write_text(text)
    assert read_yaml(tmp_path / "params.yaml") == YAML(typ="safe", pure=True).load(text)


def test_a_date_stays_text_and_merged_blocks_are_merged(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("a: &a {b: 1, c: 2020-13-41}\nd: {<<: *a, b: 2}\n")
    assert read_yaml(tmp_path / "params.yaml")["d"] == {"b": 2, "c": "2020-13-41"}
