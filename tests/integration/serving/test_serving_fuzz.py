"""The service under bodies that nobody honest sends: 4xx or a vector, within bounds, and all is as before.

``CTFOUNDRY_FUZZ=2000`` sends so many; ``CTFOUNDRY_FUZZ_FIRST`` is the number of the first.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
from bodies import body, deflate, slices, with_values
from client import PATIENT, ct_slice, post, refused, zipped
from conftest import running
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from tests.served import family

COUNT, FIRST = int(os.environ.get("CTFOUNDRY_FUZZ", "40")), int(os.environ.get("CTFOUNDRY_FUZZ_FIRST", "0"))
SECONDS = 20
GROWTH = 256 * 2**20  # resident bytes of all its processes together, between the first request and the last


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Path]]:
    """Address, process id and temporary folder of a service with narrow bounds."""
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    bounds = {"CTFOUNDRY_MAX_SECONDS": str(SECONDS), "CTFOUNDRY_MAX_MEMORY_BYTES": str(2**30)}
    limits = {"CTFOUNDRY_MAX_UNPACKED_BYTES": str(2**28), "TMPDIR": str(scratch)}
    with running(bundle, tmp_path_factory.mktemp("bentoml"), **bounds, **limits) as (url, server):
        yield url, server.pid, scratch


def test_whatever_is_sent_is_answered_with_4xx_or_a_vector(service: tuple[str, int, Path]) -> None:
    url, process, scratch = service
    good = zipped({f"{n:03d}": ct_slice(n, "1.2") for n in range(26)})
    assert post(url, good).status_code == 200
    before, kept, answers = family(process), set(scratch.iterdir()), Counter[int]()
    for number in range(FIRST, FIRST + COUNT):
        content, headers = body(number)
        begin = time.monotonic()
        response = httpx.post(f"{url}/embed", content=content, headers=headers, timeout=3 * SECONDS)
        answers[response.status_code] += 1
        assert response.status_code == 200 or 400 <= response.status_code < 500, (number, response.text)
        said = response.json().get("error", "")
        assert len(said.splitlines()) <= 1, (number, said)
        assert PATIENT not in said, (number, said)
        assert time.monotonic() - begin < 2 * SECONDS, number
    print(f"{COUNT} bodies from {FIRST}: {dict(answers)}")
    assert post(url, good).status_code == 200
    assert set(scratch.iterdir()) == kept, "temporary files are left"
    after = family(process)
    assert set(after) == set(before), "a process of the service has died, or one is left"
    assert sum(after.values()) < sum(before.values()) + GROWTH


@pytest.mark.parametrize("lie", [{"Rows": 16}, {"Columns": 16}, {"BitsAllocated": 8}], ids=str)
def test_jpeg_2000_whose_header_lies_is_422(service: tuple[str, int, Path], ct_root: Path, lie: dict[str, int]) -> None:
    """A real series; its codestreams overran the decoder's buffer and took the service with them."""
    url, process, _ = service
    before = set(family(process))
    members = {}
    for path in sorted((ct_root / "dicom" / "abdomen_jpeg2000").iterdir()):
        dataset = pydicom.dcmread(path)
        for keyword, value in lie.items():
            setattr(dataset, keyword, value)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        members[path.name] = buffer.getvalue()
    refused(post(url, zipped(members)), 422, "compressed pixels of 512 x 512 x 1 with 12 bits are not allowed")
    assert set(family(process)) == before


def test_a_deflated_bomb_is_refused_within_the_bounds(service: tuple[str, int, Path]) -> None:
    """Inside one member the deflated data set inflates to 3 GB: no ratio of the zip shows it."""
    url, _, scratch = service
    plain = slices(ExplicitVRLittleEndian)[0]
    bomb = deflate(plain + b"\xfc\xff\xfc\xffOB\0\0" + (3 << 28).to_bytes(4, "little") + bytes(3 << 28))
    assert len(bomb) < 2**20
    response = post(url, zipped({"a": bomb}))
    assert 400 <= response.status_code < 500, response.text
    assert not [path for path in scratch.iterdir() if path.name.startswith("ctfoundry-")]


def test_values_that_no_code_foresaw_are_4xx(service: tuple[str, int, Path]) -> None:
    url, _, _ = service
    for keyword, value in (("ImagePositionPatient", b"1\\nan"), ("KVP", b"1\\2"), ("RescaleIntercept", b"")):
        members = {
            f"{n}": with_values(content, **{keyword: value}) for n, content in enumerate(slices(JPEG2000Lossless))
        }
        assert post(url, zipped(members)).status_code < 500, keyword
