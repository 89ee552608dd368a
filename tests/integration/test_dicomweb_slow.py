"""The dicomweb source against a real Orthanc: right bytes, paging, a wrong password, a server that is killed."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from components.acquire.stage import acquire_series
from components.cohort.config import CohortConfig
from components.errors import UserError
from components.files import StopStageError
from components.settings import load_stage
from components.sources import raw
from components.sources.config import AcquireConfig, TransferConfig
from components.sources.dicomweb import DicomwebSource
from components.sources.interface import Listing
from components.sources.phantom.scanner import scan
from components.sources.series import SeriesJob
from tests.orthanc import PASSWORD, USER, Orthanc, require_orthanc
from tests.released import ROOT
from tests.unit.phantom_plans import small
from tests.unit.small_pacs import as_file, make_series

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("secret")]

TRANSFER = TransferConfig(attempts=6, backoff_s=0.5, stall_s=10.0, slowest_mb_s=0.5, connections=1)
ACQUIRE = AcquireConfig(
    workers=None, max_memory_gib=4.0, raw="evict", mixed_series="whole", max_unexpected=0, transfer=TRANSFER
)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    require_orthanc()
    server = Orthanc(tmp_path_factory.mktemp("orthanc"))
    yield server
    server.kill()


@pytest.fixture
def pacs(orthanc: Orthanc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Orthanc:
    """Orthanc, emptied, and this machine told how to reach it."""
    orthanc.delete()
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_URL", f"{orthanc.root}/dicom-web")
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_USER", USER)
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_PASSWORD", PASSWORD)
    monkeypatch.chdir(tmp_path)
    return orthanc


def head_config(**asked: Any) -> CohortConfig:
    config = load_stage(CohortConfig, "head", "cohort", ROOT / "params.yaml")
    return config.model_copy(update={"source": "dicomweb", "dicomweb": config.dicomweb.model_copy(update=asked)})


def listing(config: CohortConfig) -> Listing:
    return DicomwebSource(config, "head").list_series(frozenset())


def jobs(config: CohortConfig) -> list[SeriesJob]:
    rows = [{**vars(series), "source": "dicomweb", "set": ""} for series in listing(config).series]
    return [SeriesJob("head", row, [], config, ACQUIRE) for row in rows]


def made(series: int, instances: int, side: int) -> list[bytes]:
    return [as_file(image) for image in make_series(series, instances, side)]


def digests(files: Sequence[bytes]) -> list[str]:
    return sorted(hashlib.sha256(content).hexdigest() for content in files)


def arrived(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in raw.data_files(folder)]


def test_head_series_arrive_as_the_pacs_holds_them(
    pacs: Orthanc, ct_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stored: dict[int, list[bytes]] = {}
    for number in range(3):
        folder = tmp_path / f"phantom{number}"
        folder.mkdir()
        scan(replace(small("head"), patient_id=f"MRN{number}", series_uid=f"1.2.826.0.1.{number}"), folder)
        stored[number] = [path.read_bytes() for path in sorted(folder.glob("*.dcm"))]
    stored[3] = [path.read_bytes() for path in sorted((ct_root / "dicom" / "ge_head_tilted").iterdir())]
    for files in stored.values():
        pacs.store(files)
    config = head_config(page=10, body_parts=None)
    DicomwebSource(config, "head").check()
    received = [acquire_series(job) for job in jobs(config)]
    assert [r.row["status"] for r in received] == ["acquired"] * 4
    assert sorted(digests(arrived(job.folder)) for job in jobs(config)) == sorted(map(digests, stored.values()))
    originals = {image.SOPInstanceUID: image for files in stored.values() for image in map(_read, files)}
    for job in jobs(config):
        for image in map(_read, arrived(job.folder)):
            assert np.array_equal(image.pixel_array, originals[image.SOPInstanceUID].pixel_array)
    told = caplog.text + repr([r.row for r in received]) + repr(listing(config))
    for image in originals.values():
        for uid in (image.SOPInstanceUID, image.SeriesInstanceUID, image.StudyInstanceUID, image.PatientID):
            assert str(uid) not in told


def _read(content: bytes) -> pydicom.FileDataset:
    return pydicom.dcmread(BytesIO(content))


def test_a_wrong_password_stops_the_stage_before_any_series(pacs: Orthanc, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs.store(made(1, 12, 16))
    (job,) = jobs(head_config())
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_PASSWORD", "guessed")
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"PACS: access denied \(401\); check CTFOUNDRY_DICOMWEB_USER"):
        job.source.check()
    assert time.monotonic() - begin < 5


def test_a_series_of_more_than_a_thousand_instances_is_paged(pacs: Orthanc) -> None:
    files = made(1, 1203, 16)
    pacs.store(files)
    (job,) = jobs(head_config(page=100))
    assert job.row["files"] == 1203
    received = acquire_series(job)
    assert (received.row["status"], len(received.files)) == ("acquired", 1203)
    assert digests(arrived(job.folder)) == digests(files)


def test_many_series_are_paged(pacs: Orthanc) -> None:
    for number in range(130):
        pacs.store(made(number, 1, 16))
    found = listing(head_config(page=20, min_instances=1)).series
    assert len({series.series for series in found}) == len({series.patient for series in found}) == 130
    assert found == listing(head_config(page=500, min_instances=1)).series


def test_a_pacs_killed_midway_and_started_again_loses_nothing(pacs: Orthanc, caplog: pytest.LogCaptureFixture) -> None:
    files = made(1, 200, 512)
    pacs.store(files)
    (job,) = jobs(head_config())
    attempt = threading.Thread(target=job.fetch)
    attempt.start()
    while len(list(raw.RAW.glob("head/.*.partial/*.dcm"))) < 5:
        assert attempt.is_alive()
        time.sleep(0.002)
    pacs.kill()
    assert not job.folder.exists()
    time.sleep(1)
    pacs.start()
    attempt.join(timeout=120)
    assert "attempt 1 failed: PACS: the connection broke off" in caplog.text
    assert digests(arrived(job.folder)) == digests(files)
    assert list(raw.RAW.glob("head/.*")) == []


def test_a_pacs_that_stays_away_stops_the_stage_and_a_later_run_goes_on(pacs: Orthanc) -> None:
    pacs.store(made(1, 12, 16))
    (job,) = jobs(head_config())
    pacs.kill()
    try:
        twice = TRANSFER.model_copy(update={"attempts": 2})
        with pytest.raises(StopStageError, match="PACS: refuses connections; is CTFOUNDRY_DICOMWEB_URL right"):
            acquire_series(replace(job, config=ACQUIRE.model_copy(update={"transfer": twice})))
    finally:
        pacs.start()
    assert acquire_series(job).row["status"] == "acquired"


def test_a_series_removed_from_the_pacs_fails_alone(pacs: Orthanc) -> None:
    pacs.store(made(1, 12, 16))
    (gone,) = jobs(head_config())
    pacs.store(made(2, 12, 16))
    both = jobs(head_config())
    pacs.delete("MRN1")
    rows = {job.row["series"]: acquire_series(job).row for job in both}
    failed = rows.pop(gone.row["series"])
    assert failed["detail"].startswith("PACS: lists 0 instances of the series, 12 when the cohort was made")
    assert [failed["status"], *(row["status"] for row in rows.values())] == ["failed", "acquired"]


def test_one_instance_is_in_memory_at_a_time(pacs: Orthanc) -> None:
    pacs.store(made(1, 120, 512))  # 63 MB
    (job,) = jobs(head_config())
    tracemalloc.start()
    try:
        job.fetch()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6
