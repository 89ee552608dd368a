"""Tokens from a file: who is known, what a line may hold, and what a changed file does."""

from __future__ import annotations

import hmac
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from serving.tokens import VARIABLE, Tokens

FIRST, SECOND = "abcdefghijklmnop", "0123456789.-_~+/=="


def tokens(tmp_path: Path, content: str) -> Tokens:
    (tmp_path / "tokens").write_text(content)
    return Tokens(tmp_path / "tokens")


def test_a_token_has_a_name_and_a_name_may_have_two(tmp_path: Path) -> None:
    known = tokens(tmp_path, f"# ours\n\nalice:{FIRST}\n  alice:{SECOND}  \n{'z' * 16}\n")
    assert known.who(f"Bearer {FIRST}".encode()) == "alice"
    assert known.who(f"bearer  {SECOND} ".encode()) == "alice"
    unnamed = known.who(b"Bearer " + b"z" * 16)
    assert unnamed is not None
    assert unnamed.startswith("token-")
    assert "z" not in unnamed


@pytest.mark.parametrize(
    "header",
    [None, b"", b"Bearer", b"Bearer ", FIRST.encode(), f"Basic {FIRST}".encode(), f"Bearer {FIRST}x".encode(),
     f"Bearer {FIRST[:-1]}".encode(), f"Bearer {FIRST} {FIRST}".encode(), b"Bearer \xff\xfe", b"Bearer alice"],
)  # fmt: skip
def test_anything_else_is_nobody(tmp_path: Path, header: bytes | None) -> None:
    assert tokens(tmp_path, f"alice:{FIRST}").who(header) is None


def test_every_token_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, compared = tokens(tmp_path, f"alice:{FIRST}\nrobot:{SECOND}\n"), list[Any]()
    compare = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for header in (f"Bearer {FIRST}".encode(), b"Bearer x", None):
        compared.clear()
        known.who(header)
        assert compared == [(32, 32), (32, 32)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no token in it"),
        ("# none\n", "no token in it"),
        ("short\n", "line 1: the token is not allowed: at least 16 characters"),
        (f"\nalice: {FIRST}\n", "line 2: the token is not allowed"),
        (f"alice:{FIRST}é\n", "line 1: the token is not allowed"),
        (f"al ice:{FIRST}\n", "line 1: the name is not allowed"),
        (f":{FIRST}\n", "line 1: the name is not allowed"),
    ],
)
def test_a_file_that_is_not_allowed_is_one_line_that_quotes_no_token(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(UserError, match=f"^{VARIABLE}: .*tokens: {says}") as caught:
        tokens(tmp_path, content)
    assert FIRST not in str(caught.value)
    assert "short" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, says in ((tmp_path / "nowhere", "no such file or directory"), (tmp_path, "is a directory")):
        monkeypatch.setenv(VARIABLE, str(path))
        with pytest.raises(UserError, match=f"^{VARIABLE}: {path}: {says}$"):
            Tokens.from_environment()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text in UTF-8"):
        Tokens(tmp_path / "binary")
    monkeypatch.setenv(VARIABLE, " ")
    assert Tokens.from_environment() is None


def test_a_changed_file_counts_at_once_and_a_wrong_one_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, header = tokens(tmp_path, f"alice:{FIRST}"), f"Bearer {FIRST}".encode()
    path = tmp_path / "tokens"
    path.write_text(f"robot:{SECOND}\n")
    assert known.who(header) is None
    assert known.who(f"Bearer {SECOND}".encode()) == "robot"
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            path.unlink(missing_ok=True)
            assert known.who(f"Bearer {SECOND}".encode()) is None
    assert caplog.text.count("nobody is let in") == 1
    path.write_text(f"alice:{FIRST}")
    assert known.who(header) == "alice"
    beside = tmp_path / "beside"
    beside.write_text(f"robot:{FIRST}")  # of the same length, and as old
    os.utime(beside, ns=(path.stat().st_mtime_ns,) * 2)
    beside.replace(path)
    assert known.who(header) == "robot"
