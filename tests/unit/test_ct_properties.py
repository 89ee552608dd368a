"""Properties of what strangers send: multipart answers in any pieces, zips of any content and with any damage."""

from __future__ import annotations

import io
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.ct.archive import ArchiveError, ArchiveLimits, unpack
from components.sources.pacs import Parts
from components.sources.tree import Archives, zip_members

LIMITS = ArchiveLimits(members=50, unpacked_bytes=1 << 20, ratio=100.0)
# Bytes in which delimiters, their beginnings and line ends are likely; a part may not hold the delimiter itself.
TEXT = st.lists(st.sampled_from([b"\r\n", b"--", b"edge", b"-", b"\r", b"\n", b"e", b"\0", b"x" * 9]), max_size=12).map(
    b"".join
)
CONTENT = TEXT.filter(lambda content: b"\r\n--edge" not in b"\r\n" + content + b"\r\n")
NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=20)


def cut(body: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[begin:end] for begin, end in pairwise(ends)]


@settings(max_examples=300, deadline=None)
@given(st.lists(CONTENT, min_size=1, max_size=4), CONTENT, TEXT, st.booleans(), st.lists(st.integers(0, 10_000)))
def test_the_parts_of_an_answer_are_the_same_in_whatever_pieces_they_come(
    contents: list[bytes], preamble: bytes, epilogue: bytes, bare: bool, places: list[int]
) -> None:
    message = b"".join(b"\r\n--edge\r\nContent-Type: x\r\n\r\n" + content for content in contents) + b"\r\n--edge--"
    body = message[2:] if bare else preamble + message
    parts = Parts("edge")
    kept = b"".join(parts.keep(piece) for piece in cut(body + b"\r\n" + epilogue, places))
    assert kept == message
    assert parts.closed


@settings(max_examples=200, deadline=None)
@given(CONTENT, st.lists(st.integers(0, 10_000)))
def test_an_answer_that_breaks_off_is_never_closed(content: bytes, places: list[int]) -> None:
    message = b"\r\n--edge\r\n\r\n" + content + b"\r\n--edge-"
    parts = Parts("edge")
    kept = b"".join(parts.keep(piece) for piece in cut(message, places))
    assert not parts.closed
    assert message.startswith(kept)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES.filter(lambda name: not name.endswith("/")), st.binary(max_size=300)), max_size=8))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_member_comes_out_as_it_went_in_whatever_it_is_called(members: list[tuple[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
        found = [file.read_bytes() for file, _ in unpack(path, Path(place) / "out", LIMITS)]
        assert sorted(found) == sorted(content for _, content in members)
        assert {item.name for item in Path(place).iterdir()} == {"a.zip", "out"}
        with zipfile.ZipFile(path) as archive:
            assert len(zip_members(archive)) == len(members), "two of one name are told apart"
        with Archives(Path(place)) as archives, zipfile.ZipFile(path) as archive:
            read = [b"".join(archives.blocks(f"a.zip!/{name}")) for name in zip_members(archive)]
        assert sorted(read) == sorted(content for _, content in members)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 255)), min_size=1, max_size=4), st.booleans())
def test_a_damaged_zip_is_an_archive_error_or_the_right_bytes(flips: list[tuple[int, int]], packed: bool) -> None:
    contents = {f"MEIER-{n}": bytes(range(256)) * n for n in range(1, 4)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    raw = bytearray(stream.getvalue())
    for place, flip in flips:
        raw[place % len(raw)] ^= flip
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.zip"
        path.write_bytes(raw)
        said, found = "", []
        try:
            found = [file.read_bytes() for file, _ in unpack(path, Path(place) / "out", LIMITS)]
        except ArchiveError as error:
            said = str(error)
        assert "MEIER" not in said
        assert not said or not (Path(place) / "out").exists() or not list((Path(place) / "out").iterdir())
        assert all(content in contents.values() for content in found)
