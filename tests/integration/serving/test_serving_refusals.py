"""What the service refuses, clearly and within seconds, and what it withstands."""

from __future__ import annotations

import gzip
import http.client
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from client import MAX_BODY, ct_series, ct_slice, nifti, post, refused, zipped

from serving.limits import Limits


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello, this is not a scan", "neither a zip nor a NIfTI volume"),
        (b"http://127.0.0.1:1/scan.zip", "addresses are not fetched"),
        (b'{"file": "http://127.0.0.1:1/scan.zip"}', "addresses are not fetched"),
        (ct_slice(0, "1.2"), "a single DICOM file"),
        (gzip.compress(b"text" * 1000), "gzip without a NIfTI volume"),
    ],
    ids=["text", "address", "json", "dicom", "gzip"],
)
def test_what_is_neither_zip_nor_nifti_is_415(url: str, content: bytes, says: str) -> None:
    refused(post(url, content), 415, says)


def test_an_address_in_place_of_a_file_is_refused_and_never_fetched(url: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.5)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/scan.zip"
        plain = httpx.post(f"{url}/embed", files={"file": (None, address)}, timeout=10)
        refused(plain, 400, "form field 'file' holds text, not a file")
        typed = httpx.post(f"{url}/embed", data={"file": address}, timeout=10)
        assert 400 <= typed.status_code < 500
        named = httpx.post(f"{url}/embed", files={"file": ("a.zip", address.encode())}, timeout=10)
        refused(named, 415, "addresses are not fetched")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_an_empty_body_and_a_broken_form_are_400(url: str) -> None:
    refused(post(url, b""), 400, "holds no bytes")
    refused(post(url, b"--x\r\nnonsense", **{"content-type": "multipart/form-data; boundary=x"}), 400, "multipart body")
    refused(post(url, b"--x", **{"content-type": "multipart/form-data"}), 400, "boundary")
    two = httpx.post(f"{url}/embed", files=[("a", ("a", b"x")), ("b", ("b", b"y"))], timeout=10)
    refused(two, 422, "files: no CT series in it (2 not_dicom); send one CT series")


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
    refused(declared, 413, "too large")
    assert time.monotonic() - begin < 5
    streamed = httpx.post(f"{url}/embed", content=body(), timeout=30)
    refused(streamed, 413, "too large")
    assert time.monotonic() - begin < 15


def test_a_zip_bomb_is_413(url: str) -> None:
    bomb = zipped({"a": bytes(300 * 1024**2)})
    assert len(bomb) < 1024**2
    refused(post(url, bomb), 413, "to 1 is not allowed")


def test_too_many_members_are_413(url: str) -> None:
    refused(post(url, zipped({str(i): b"" for i in range(Limits().files + 1)})), 413, "members are not allowed")


def test_a_nifti_bomb_is_413_before_it_is_inflated(url: str) -> None:
    header = nib.Nifti1Image(np.zeros((1, 1, 1), dtype=np.int16), np.eye(4)).to_bytes()[:352]
    large = bytearray(header)
    large[40:48] = np.array([3, 30000, 30000, 30000], dtype="<i2").tobytes()
    refused(post(url, gzip.compress(bytes(large) + bytes(10 * 1024**2))), 413, "voxels are too many")


def test_a_nifti_too_large_for_the_models_grid_is_413(url: str) -> None:
    image = nib.Nifti1Image(np.zeros((64, 64, 64), dtype=np.int16), np.diag([90.0, 90.0, 90.0, 1.0]))
    refused(post(url, image.to_bytes()), 413, "voxels on the model's grid")


@pytest.mark.parametrize("mm", [1e-6, 900.0])
def test_voxels_that_no_scanner_has_are_422(url: str, mm: float) -> None:
    image = nib.Nifti1Image(np.zeros((8, 8, 8), dtype=np.int16), np.diag([3.0, 3.0, mm, 1.0]))
    assert post(url, image.to_bytes()).status_code == 422
    flat = {str(i): ct_slice(i, "3.7", PixelSpacing=[mm, mm]) for i in range(12)}
    refused(post(url, zipped(flat)), 422, "PixelSpacing")


def test_a_damaged_nifti_is_422(url: str) -> None:
    whole = nifti()
    refused(post(url, whole[: len(whole) // 2]), 422, "NIfTI")
    refused(post(url, nifti(compress=False)[:20_000]), 422, "NIfTI")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, "no CT series in it (no file)"),
        (
            {"a.txt": b"text", "b.zip": zipped({"x": ct_slice(0, "1.2")})},
            "1 archive_within_archive, 1 not_dicom); archives within",
        ),
        ({"a": ct_slice(0, "1.2", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")}, "1 not_ct"),
        ({"a": ct_slice(0, "1.2", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}, "1 localizer"),
    ],
    ids=["empty", "other_files", "mr", "scout"],
)
def test_a_zip_without_ct_is_422(url: str, members: dict[str, bytes], says: str) -> None:
    refused(post(url, zipped(members)), 422, says)


def test_a_zip_cut_short_is_422(url: str, good: bytes) -> None:
    refused(post(url, good[: len(good) // 2]), 422, "zip: damaged or cut short")


@pytest.mark.parametrize("kept", [20_000, 900, 200], ids=["pixels", "header", "preamble"])
def test_a_truncated_dicom_file_is_422_and_named(url: str, kept: int) -> None:
    members = ct_series()
    members["CT/IM007"] = members["CT/IM007"][:kept]
    refused(post(url, zipped(members)), 422, "IM007")


def test_two_ct_series_are_422(url: str) -> None:
    two = {**ct_series("1.1"), **{f"other/{name}": content for name, content in ct_series("2.2", 12).items()}}
    refused(post(url, zipped(two)), 422, "2 CT series in it (of 26, 12 images)")


def test_a_member_that_names_a_path_outside_is_read_and_written_nowhere_else(url: str) -> None:
    mark = f"ctfoundry-escaped-{os.getpid()}"
    escaping = {f"../../../../../../tmp/{mark}/{name}": content for name, content in ct_series().items()}
    assert post(url, zipped(escaping)).status_code == 200
    assert not (Path("/tmp") / mark).exists()


def test_air_is_422_and_a_series_without_positions_is_422(url: str) -> None:
    air = {str(i): ct_slice(i, "3.3", PixelData=bytes(128 * 128 * 2)) for i in range(26)}
    refused(post(url, zipped(air)), 422, "body")
    nowhere = {str(i): ct_slice(i, "3.4", ImagePositionPatient=None) for i in range(26)}
    refused(post(url, zipped(nowhere)), 422, "ImagePositionPatient")


def test_other_methods_and_paths_are_4xx(url: str) -> None:
    assert httpx.get(f"{url}/embed", timeout=5).status_code == 405
    assert httpx.post(f"{url}/nothing", content=b"x", timeout=5).status_code == 404
