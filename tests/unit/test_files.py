"""Nothing half-written stays; equal content gives equal bytes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from components.files import read_table, replacing, sha256_tree, write_json, write_table


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "stale").touch()
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_tables_and_json_have_stable_bytes(tmp_path: Path) -> None:
    table = pd.DataFrame({"series": ["a", "b"], "value": [1.5, None]})
    for name in ("1", "2"):
        write_table(tmp_path / name / "t.parquet", table)
        write_json(tmp_path / name / "t.json", {"b": 1, "a": [1.25, None]})
    assert sha256_tree(tmp_path / "1") == sha256_tree(tmp_path / "2")
    pd.testing.assert_frame_equal(read_table(tmp_path / "1" / "t.parquet"), table)


def test_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "t.json", {"auc": float("nan")})
    assert not list(tmp_path.iterdir())
