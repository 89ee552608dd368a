"""The real service, started as people start it, against a bundle: what it answers, and what it withstands."""

from __future__ import annotations

import gzip
import http.client
import io
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from components.bundle.manifest import write_manifest
from components.files import write_json
from components.params import read_yaml
from components.pretrain.config import InputConfig, SegResConfig
from components.pretrain.embed import EmbedConfig, Embedder
from components.pretrain.models import build_encoder
from serving.embedding import embed_file, open_release
from serving.limits import Limits

ROOT = Path(__file__).resolve().parents[2]
MAX_BODY = 256 * 1024**2
PATIENT = "SECRET^PATIENT"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with a small untrained encoder and the whole-body line's own preprocessing and thresholds."""
    folder = tmp_path_factory.mktemp("releases") / "wholebody"
    parameters = read_yaml(ROOT / "params.yaml")["wholebody"]
    view = InputConfig(orientation="SPL", spacing_mm=(3.0, 1.0, 1.0), size_vox=(16, 64, 64), windows=((0.0, 2000.0),))
    config = SegResConfig(kind="segres", init_filters=4, blocks_down=(1, 1, 1))
    encoder = build_encoder(config, view, seed=1)
    Embedder.from_encoder(encoder, EmbedConfig(line="wholebody", encoder=config, input=view)).save(folder)
    write_json(folder / "preprocess.json", parameters["preprocess"])
    write_json(folder / "quality.json", {"headers": parameters["screen"], "volumes": parameters["curate"]})
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return folder


@pytest.fixture(scope="module")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service on a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("bentoml")
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "CTFOUNDRY_BUNDLE": str(bundle),
        "CTFOUNDRY_MAX_BODY_BYTES": str(MAX_BODY),
    }
    command = [sys.executable, "-m", "bentoml", "serve", "serving.service:CTEmbed", "--host", "127.0.0.1"]
    log = (home / "log").open("w+b")
    server = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}", home / "log")
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None, "the service has ended by itself"
        assert PATIENT.encode() not in (home / "log").read_bytes(), "the log names the patient"
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
        if server.poll() is not None:
            break
    raise AssertionError(f"the service did not start:\n{log.read_text()[-4000:]}")


def _slice(index: int, series: str, **changes: Any) -> bytes:
    """One CT instance: an ellipse of soft tissue in air, 3 mm below the one before."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[series, str(index)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.StudyInstanceUID = PATIENT, PATIENT, "1.2.3"
    dataset.SeriesInstanceUID, dataset.Modality, dataset.ImageType = series, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-160, -160, 3 * index], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [2.5, 2.5], 3
    dataset.Rows = dataset.Columns = 128
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    y, x = np.mgrid[:128, :128] - 63.5
    noise = np.random.default_rng(index).normal(0, 8, (128, 128))
    hu = np.where((x / 44) ** 2 + (y / 30) ** 2 < 1, 40 + 30 * np.sin(index / 5), -1000) + noise
    dataset.PixelData = np.rint(hu + 1024).astype("<i2").tobytes()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _series(series: str = "1.2.3.4", count: int = 26) -> dict[str, bytes]:
    return {f"CT/IM{index:03d}": _slice(index, series) for index in range(count)}


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _nifti(compress: bool = True) -> bytes:
    hu = np.full((60, 60, 40), -1000, dtype=np.int16)
    hu[10:50, 15:45] = 40
    content = nib.Nifti1Image(hu, np.diag([3.0, 3.0, 3.0, 1.0])).to_bytes()
    return gzip.compress(content) if compress else content


def _post(url: str, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=content, headers=headers, timeout=60)


def _refused(response: httpx.Response, status: int, says: str) -> None:
    """A refusal is one clear line of JSON, names no patient, and the service goes on."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    message = response.json()["error"]
    assert says in message, message
    assert "\n" not in message
    assert PATIENT not in message
    assert "/tmp" not in message
    base = str(response.url).removesuffix("/embed")
    assert httpx.get(f"{base}/healthz", timeout=5).status_code == 200


@pytest.fixture(scope="module")
def good() -> bytes:
    return _zip({**_series(), "README.txt": b"hello", "DICOMDIR.zip": _zip({"a": b"b"})})


def test_a_zipped_series_gives_the_offline_vector_and_says_what_was_found(
    url: str, bundle: Path, good: bytes, tmp_path: Path
) -> None:
    answer = _post(url, good).json()
    (tmp_path / "anything.bin").write_bytes(good)
    offline = embed_file(tmp_path / "anything.bin", open_release(bundle), Limits())
    np.testing.assert_allclose(answer["embedding"], offline.embedding, atol=1e-5)
    assert answer["dim"] == len(answer["embedding"]) == offline.embedding.size > 0
    assert answer["model"] == {"name": "ctfoundry-wholebody", "digest": open_release(bundle).manifest.digest}
    found = answer["found"]
    assert (found["kind"], found["instances"]) == ("dicom", 26)
    assert found["ignored"] == {"archive_within_archive": 1, "not_dicom": 1}
    assert found["as_sent"] == {"shape": [26, 128, 128], "spacing_mm": [3.0, 2.5, 2.5], "orientation": "SPL"}
    assert found["standardised"]["spacing_mm"] == [3.0, 1.0, 1.0]
    assert found["warnings"] == []
    assert 0.1 < found["body_fraction"] < 1
    assert PATIENT not in str(answer)


def test_the_offline_vector_is_that_of_the_training_code(bundle: Path, tmp_path: Path) -> None:
    from components.params import parse
    from components.preprocess.config import PreprocessConfig
    from components.preprocess.dicom import read_series
    from components.preprocess.standardise import standardise

    paths = []
    for name, content in _series().items():
        paths.append(tmp_path / name.replace("/", "-"))
        paths[-1].write_bytes(content)
    config = parse(PreprocessConfig, read_yaml(ROOT / "params.yaml")["wholebody"]["preprocess"], "preprocess")
    trained = Embedder.load(bundle).embed_volume(standardise(read_series(paths), config))
    (tmp_path / "scan.zip").write_bytes(_zip(_series()))
    served = embed_file(tmp_path / "scan.zip", open_release(bundle), Limits()).embedding
    np.testing.assert_array_equal(served, trained)


def test_a_form_with_one_file_is_the_same_as_the_raw_body_whatever_type_it_declares(url: str, good: bytes) -> None:
    raw = _post(url, good, **{"content-type": "text/plain"}).json()
    form = httpx.post(f"{url}/embed", files={"scan": ("x.exe", good, "image/png")}, timeout=60).json()
    assert form == raw


@pytest.mark.parametrize("compress", [True, False])
def test_a_nifti_is_embedded(url: str, compress: bool) -> None:
    found = _post(url, _nifti(compress)).json()["found"]
    assert (found["kind"], found["as_sent"]["orientation"], found["series"]) == ("nifti", "SAR", "")


def test_what_training_would_reject_comes_back_as_a_warning(url: str) -> None:
    tilted = {f"{i:03d}": _slice(i, "9.9", ImagePositionPatient=[-160, -160 + i, 3 * i]) for i in range(26)}
    warnings = _post(url, _zip(tilted)).json()["found"]["warnings"]
    assert [w.partition(":")[0] for w in warnings] == ["gantry_tilt"]
    assert "found 18.4" in warnings[0]


def test_health_answers_while_a_series_is_processed(url: str, good: bytes) -> None:
    many = _zip({f"{i:04d}": _slice(i, "5.5") for i in range(150)})
    statuses: list[int] = []
    sender = threading.Thread(target=lambda: statuses.append(_post(url, many).status_code))
    sender.start()
    slowest = 0.0
    while sender.is_alive():
        begin = time.monotonic()
        assert httpx.get(f"{url}/healthz", timeout=10).status_code == 200
        slowest = max(slowest, time.monotonic() - begin)
        time.sleep(0.05)
    sender.join()
    assert statuses == [200]
    assert slowest < 2


def test_metrics_count_requests_by_outcome(url: str, good: bytes) -> None:
    assert _post(url, good).status_code == 200
    assert _post(url, b"no").status_code == 415
    text = httpx.get(f"{url}/metrics", timeout=10).text
    for outcome in ("embedded", "refused_415"):
        assert f'ctfoundry_embed_requests_total{{outcome="{outcome}"}}' in text
    assert "ctfoundry_embed_seconds_bucket" in text
    assert "ctfoundry_model{" in text


def test_the_model_says_what_it_is(url: str, bundle: Path) -> None:
    told = httpx.get(f"{url}/model", timeout=10).json()
    assert told["digest"] == open_release(bundle).manifest.digest


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello, this is not a scan", "neither a zip nor a NIfTI volume"),
        (b"http://127.0.0.1:1/scan.zip", "addresses are not fetched"),
        (b'{"file": "http://127.0.0.1:1/scan.zip"}', "addresses are not fetched"),
        (_slice(0, "1.2"), "a single DICOM file"),
        (gzip.compress(b"text" * 1000), "gzip without a NIfTI volume"),
    ],
    ids=["text", "address", "json", "dicom", "gzip"],
)
def test_what_is_neither_zip_nor_nifti_is_415(url: str, content: bytes, says: str) -> None:
    _refused(_post(url, content), 415, says)


def test_an_address_in_place_of_a_file_is_refused_and_never_fetched(url: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.5)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/scan.zip"
        plain = httpx.post(f"{url}/embed", files={"file": (None, address)}, timeout=10)
        _refused(plain, 400, "form field 'file' holds text, not a file")
        typed = httpx.post(f"{url}/embed", data={"file": address}, timeout=10)
        assert 400 <= typed.status_code < 500
        named = httpx.post(f"{url}/embed", files={"file": ("a.zip", address.encode())}, timeout=10)
        _refused(named, 415, "addresses are not fetched")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_an_empty_body_and_a_broken_form_are_400(url: str) -> None:
    _refused(_post(url, b""), 400, "holds no bytes")
    _refused(
        _post(url, b"--x\r\nnonsense", **{"content-type": "multipart/form-data; boundary=x"}), 400, "multipart body"
    )
    _refused(_post(url, b"--x", **{"content-type": "multipart/form-data"}), 400, "boundary")
    two = httpx.post(f"{url}/embed", files=[("a", ("a", b"x")), ("b", ("b", b"y"))], timeout=10)
    _refused(two, 400, "more than one file")


def test_a_body_that_declares_2_gb_is_413_at_once(url: str) -> None:
    begin = time.monotonic()
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.putrequest("POST", "/embed")
    connection.putheader("Content-Length", str(2 * 1024**3))
    connection.endheaders(b"PK\x03\x04")
    response = connection.getresponse()
    assert response.status == 413
    assert f"at most {MAX_BODY} bytes" in response.read().decode()
    assert time.monotonic() - begin < 3
    connection.close()
    assert httpx.get(f"{url}/healthz", timeout=5).status_code == 200


def test_a_client_that_sends_2_gb_regardless_gets_its_answer_within_seconds(url: str) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(2 * 1024):
            yield bytes(1024**2)

    begin = time.monotonic()
    declared = httpx.post(f"{url}/embed", content=body(), headers={"content-length": str(2 * 1024**3)}, timeout=30)
    _refused(declared, 413, "too large")
    assert time.monotonic() - begin < 5
    streamed = httpx.post(f"{url}/embed", content=body(), timeout=30)
    _refused(streamed, 413, "too large")
    assert time.monotonic() - begin < 15


def test_a_zip_bomb_is_413(url: str) -> None:
    bomb = _zip({"a": bytes(300 * 1024**2)})
    assert len(bomb) < 1024**2
    _refused(_post(url, bomb), 413, "to 1 is not allowed")


def test_too_many_members_are_413(url: str) -> None:
    _refused(_post(url, _zip({str(i): b"" for i in range(Limits().files + 1)})), 413, "members are not allowed")


def test_a_nifti_bomb_is_413_before_it_is_inflated(url: str) -> None:
    header = nib.Nifti1Image(np.zeros((1, 1, 1), dtype=np.int16), np.eye(4)).to_bytes()[:352]
    large = bytearray(header)
    large[40:48] = np.array([3, 30000, 30000, 30000], dtype="<i2").tobytes()
    _refused(_post(url, gzip.compress(bytes(large) + bytes(10 * 1024**2))), 413, "voxels are too many")


def test_a_nifti_too_large_for_the_models_grid_is_413(url: str) -> None:
    image = nib.Nifti1Image(np.zeros((64, 64, 64), dtype=np.int16), np.diag([90.0, 90.0, 90.0, 1.0]))
    _refused(_post(url, image.to_bytes()), 413, "voxels on the model's grid")


@pytest.mark.parametrize("mm", [1e-6, 900.0])
def test_voxels_that_no_scanner_has_are_422(url: str, mm: float) -> None:
    image = nib.Nifti1Image(np.zeros((8, 8, 8), dtype=np.int16), np.diag([3.0, 3.0, mm, 1.0]))
    assert _post(url, image.to_bytes()).status_code == 422
    flat = {str(i): _slice(i, "3.7", PixelSpacing=[mm, mm]) for i in range(12)}
    _refused(_post(url, _zip(flat)), 422, "PixelSpacing")


def test_a_damaged_nifti_is_422(url: str) -> None:
    whole = _nifti()
    _refused(_post(url, whole[: len(whole) // 2]), 422, "NIfTI")
    _refused(_post(url, _nifti(compress=False)[:20_000]), 422, "NIfTI")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, "no CT series in it (no file)"),
        ({"a.txt": b"text", "b.zip": _zip({"x": _slice(0, "1.2")})}, "1 archive_within_archive, 1 not_dicom"),
        ({"a": _slice(0, "1.2", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")}, "1 not_ct"),
        ({"a": _slice(0, "1.2", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}, "1 localizer"),
    ],
    ids=["empty", "other_files", "mr", "scout"],
)
def test_a_zip_without_ct_is_422(url: str, members: dict[str, bytes], says: str) -> None:
    _refused(_post(url, _zip(members)), 422, says)


def test_a_zip_cut_short_is_422(url: str, good: bytes) -> None:
    _refused(_post(url, good[: len(good) // 2]), 422, "zip: damaged or cut short")


@pytest.mark.parametrize("kept", [20_000, 900, 200], ids=["pixels", "header", "preamble"])
def test_a_truncated_dicom_file_is_422_and_named(url: str, kept: int) -> None:
    members = _series()
    members["CT/IM007"] = members["CT/IM007"][:kept]
    _refused(_post(url, _zip(members)), 422, "IM007")


def test_two_ct_series_are_422(url: str) -> None:
    two = {**_series("1.1"), **{f"other/{name}": content for name, content in _series("2.2", 12).items()}}
    _refused(_post(url, _zip(two)), 422, "2 CT series in it (of 26, 12 images)")


def test_a_member_that_names_a_path_outside_is_read_and_written_nowhere_else(url: str) -> None:
    mark = f"ctfoundry-escaped-{os.getpid()}"
    escaping = {f"../../../../../../tmp/{mark}/{name}": content for name, content in _series().items()}
    assert _post(url, _zip(escaping)).status_code == 200
    assert not (Path("/tmp") / mark).exists()


def test_air_is_422_and_a_series_without_positions_is_422(url: str) -> None:
    air = {str(i): _slice(i, "3.3", PixelData=bytes(128 * 128 * 2)) for i in range(26)}
    _refused(_post(url, _zip(air)), 422, "body")
    nowhere = {str(i): _slice(i, "3.4", ImagePositionPatient=None) for i in range(26)}
    _refused(_post(url, _zip(nowhere)), 422, "ImagePositionPatient")


def test_other_methods_and_paths_are_4xx(url: str) -> None:
    assert httpx.get(f"{url}/embed", timeout=5).status_code == 405
    assert httpx.post(f"{url}/nothing", content=b"x", timeout=5).status_code == 404


def test_a_real_chest_ct_is_embedded_as_offline(url: str, bundle: Path, ct_root: Path) -> None:
    path = ct_root / "dicom" / "lidc_idri_0314.zip"
    answer = _post(url, path.read_bytes()).json()
    offline = embed_file(path, open_release(bundle), Limits())
    np.testing.assert_allclose(answer["embedding"], offline.embedding, atol=1e-5)
    assert answer["found"]["instances"] == 275
    assert answer["found"]["warnings"] == []
