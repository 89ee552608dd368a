"""Every route under requests that nobody honest makes: mutated uploads, generated requests, clients that hang up.

As :mod:`test_serving_fuzz`: ``CTFOUNDRY_FUZZ=2000`` sends so many uploads and five times as many generated requests.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from answering import write_answering, write_index
from client import PATIENT
from mutations import AT, BOUNDARY, QUERIES, form, sound, upload
from test_serving_fuzz import COUNT, FIRST

from serving.asking import INDEX_VARIABLE
from serving.embedding import open_release
from tests.benchmarks.nuisances import connected, header, wait_for
from tests.served import Served, served

SECONDS = 30  # of a file's reader
SERIES = 400  # of figures, whatever was asked
GROWTH = 1.05  # of the resident memory of the processes that stay
GENERATED = 5 * COUNT


@pytest.fixture(scope="module")
def service(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_answering(bundle, tmp_path_factory.mktemp("answering") / "wholebody")
    index = write_index(open_release(folder), tmp_path_factory.mktemp("index") / "cases.safetensors")
    bounds = {"CTFOUNDRY_MAX_SECONDS": str(SECONDS), "CTFOUNDRY_MAX_MEMORY_BYTES": str(2**31)}
    limits = {"CTFOUNDRY_MAX_UNPACKED_BYTES": str(2**28), "CTFOUNDRY_MAX_BODY_BYTES": str(2**26)}
    with served(folder, **bounds, **limits, **{INDEX_VARIABLE: str(index)}) as one:
        yield one
        assert PATIENT.encode() not in one.log.read_bytes(), "the log names the patient"


@pytest.fixture
def unharmed(service: Served) -> Iterator[Served]:
    """The service, which afterwards is as it was before: its processes, its memory, its disk, its places."""
    for content in sound().values():
        answer = httpx.post(f"{service.url}/embed", content=content, timeout=60)
        assert answer.status_code == 200, answer.text
    before = service.family()
    yield service
    wait_for("files or children of requests", lambda: not service.left() and set(service.family()) == set(before))
    figures = service.figures()
    assert not any(figures[f"ctfoundry_{name}"] for name in ("uploads", "waiting", "working"))
    after = service.family()
    print(
        f"{len(figures)} series; {sum(before.values()) / 2**20:.0f} MiB before, {sum(after.values()) / 2**20:.0f} after"
    )
    assert len(figures) <= SERIES
    assert sum(after.values()) <= GROWTH * sum(before.values())
    assert "Traceback" not in service.log.read_text()


def test_mutated_uploads_are_answered_or_refused_in_one_line(unharmed: Served) -> None:
    answers, longest = Counter[int](), 0.0
    with httpx.Client(timeout=3 * SECONDS) as client:
        for number in range(FIRST, FIRST + COUNT):
            sent = upload(number)
            begin = time.monotonic()
            answer = client.post(f"{unharmed.url}/{sent.query}", content=sent.content, headers=sent.headers)
            longest = max(longest, time.monotonic() - begin)
            answers[answer.status_code] += 1
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, (number, sent.what, answer.text)
            assert PATIENT.encode() not in answer.content or b"DICM" in answer.content[:132], (number, sent.what)
            if answer.status_code != 200:
                assert re.fullmatch(r"[^\n]+", answer.json()["error"]), (number, sent.what)
                assert str(unharmed.scratch) not in answer.text, (number, sent.what)
    print(f"{COUNT} uploads from {FIRST}: {dict(answers)}, at most {longest:.1f} s")
    assert longest < 2 * SECONDS
    assert answers[200] > 0


def requests_of(service: Served) -> int:
    """Requests that the service has counted."""
    return int(sum(n for name, n in service.figures().items() if name.startswith("ctfoundry_requests_total")))


def test_generated_requests_meet_the_document(unharmed: Served) -> None:
    """By schemathesis, from our own document. Bodies at random are rightly no scans: it must not demand a 200."""
    begin, seed = requests_of(unharmed), FIRST
    while seed == FIRST or requests_of(unharmed) - begin < GENERATED:
        each = max(3, GENERATED // 200)
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{unharmed.url}/docs.json", "--seed", str(seed),
            "--exclude-checks", "positive_data_acceptance", "--max-examples", str(each), "--request-timeout", "60",
            "--generation-database", "none", "--no-color",
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as empty:
            done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=7200)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        seed += 1
    print(f"{requests_of(unharmed) - begin} requests from seed {FIRST}; the last run:\n{done.stdout[-1500:]}")
    failed = [name for name, number in unharmed.figures().items() if 'outcome="failed"' in name and number]
    assert failed == []


@pytest.mark.parametrize("query", QUERIES)
def test_whoever_hangs_up_leaves_nothing_behind(unharmed: Served, query: str) -> None:
    """While the header comes, while the body does, when it has come, while it waits, and while it is worked on."""
    content = sound()["zip"]
    fields = {}
    if query.startswith("locate"):
        content = form([("scan", content), ("other", content)])
        fields = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    whole = header(len(content), query, **fields) + content
    for length, seconds in ((40, 0.0), (len(whole) - 9, 0.0), (len(whole), 0.0), (len(whole), 0.05), (len(whole), 0.3)):
        with connected(unharmed) as client:
            client.sendall(whole[:length])
            time.sleep(seconds)
    answer = httpx.post(
        f"{unharmed.url}/locate?{AT}", files={"scan": sound()["zip"], "other": sound()["nii"]}, timeout=60
    )
    assert answer.status_code in (200, 422), "the next one is answered"
