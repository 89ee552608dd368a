"""The Python client calls the real service: every route, as the README shows it, behind doors, while it is busy."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from client import PATIENT, ct_slice, refused
from conftest import running, started
from released import ROOT, free_port, write_segmenter

from components.bundle.manifest import write_manifest
from serving.asking import INDEX_VARIABLE
from serving.client import Client, Embedding, ServiceError
from serving.embedding import open_release
from serving.nearest import Index, Indexed
from serving.tls import Tls
from tests.certificates import Authority
from tests.unit.test_serving_classifying import head
from tests.unit.test_serving_client import CLASSES, of_fields, of_schema

POINT = (0.0, 0.0, 40.0)


@pytest.fixture(scope="module")
def served(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A release with heads of every kind, and an index."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("heads") / "wholebody"))
    write_segmenter(folder, "organs_segmented", ("liver", "spleen"))
    head(folder, "findings/ich", "scan")
    head(folder, "organs", "point")
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    release = open_release(folder)
    vectors = np.random.default_rng(5).normal(size=(3, release.embedder.dim)).astype(np.float32)
    cases = tuple(Indexed(f"s{n:016x}", f"p{n:016x}", "site", {"organ": ["liver"]}) for n in range(3))
    index = folder.parent / "cases.safetensors"
    Index(release.manifest.digest, cases, vectors).write(index)
    with running(folder, tmp_path_factory.mktemp("bentoml"), **{INDEX_VARIABLE: str(index)}) as (url, _):
        yield url


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of DICOM, as it lies on a disk."""
    folder = tmp_path_factory.mktemp("disk") / "series"
    (folder / "CT").mkdir(parents=True)
    for index in range(26):
        content = ct_slice(index, "1.2.3.4", FrameOfReferenceUID="1.2.5")
        (folder / "CT" / f"IM{index:03d}.dcm").write_bytes(content)
    return folder


def test_every_route_gives_what_it_gives_over_http(served: str, series: Path, good: bytes, tmp_path: Path) -> None:
    zipped = tmp_path / "series.zip"
    zipped.write_bytes(good)
    with Client(served) as client:
        model = client.model()
        assert (model.heads, list(model.segments)) == (
            {"findings/ich": "scan", "organs": "point"},
            ["organs_segmented"],
        )
        assert model.index is not None
        assert model.index.cases == 3
        found = client.embed(series)
        assert found.embedding == client.embed(zipped).embedding
        sent = httpx.post(f"{served}/embed", content=good, timeout=60).json()
        assert list(found.embedding) == sent["embedding"]
        assert (found.found.instances, found.found.kind) == (26, "dicom")
        assert list(client.classify(series).answers) == ["findings/ich"]
        answers = client.classify(series, POINT).answers
        assert list(answers) == ["findings/ich", "organs"]
        assert answers["organs"].operating_point is not None
        assert client.segment(series).structures["1"].name == "liver"
        explained = client.saliency(series, "organs", POINT, of_class="absent", blocks=2)
        assert (explained.of_class, explained.blocks) == ("absent", (2, 2, 2))
        place = client.locate(series, zipped, POINT).places[0]
        query, files = {"point_mm": "0,0,40"}, {"scan": good, "other": good}
        told = httpx.post(f"{served}/locate", params=query, files=files, timeout=60).json()["places"][0]
        assert {"point_mm": list(place.point_mm), "similarity": place.similarity} == told
        assert [case.collection for case in client.retrieve(series, nearest=2).nearest] == ["site", "site"]
        shape = tuple(reversed(found.found.as_sent.shape))
        for content in (client.segment_file(series), client.saliency_map(series, "organs", POINT, blocks=2)):
            assert nib.Nifti1Image.from_bytes(gzip.decompress(content)).shape == shape
        preview = nib.Nifti1Image.from_bytes(gzip.decompress(client.preview(series)))
        assert sorted(preview.shape) == sorted(found.found.standardised.shape)
        for content in (client.segment_file(series, "dicom"), client.classify_report(series)):
            assert pydicom.dcmread(io.BytesIO(content)).PatientID == PATIENT


def test_a_refusal_is_the_services_own_line(served: str, series: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.txt").write_text("no scan")
    with Client(served) as client:
        for call, status, says in (
            (lambda: client.embed(tmp_path / "scan.txt"), 415, "zip"),
            (lambda: client.saliency(series, "organs"), 409, "point_mm=R,A,S"),
            (lambda: client.saliency(series), 400, "several heads"),
        ):
            with pytest.raises(ServiceError, match=says) as raised:
                call()
            assert raised.value.status == status
            assert "\n" not in str(raised.value)
    refused(httpx.post(f"{served}/embed", content=b"no scan", timeout=60), 415, "zip")


def test_its_answers_are_those_of_the_document_that_is_served(served: str) -> None:
    schemas = httpx.get(f"{served}/docs.json", timeout=60).json()["components"]["schemas"]
    assert {name: of_schema(schema) for name, schema in schemas.items() if name != "Error"} == {
        name: of_fields(kind) for name, kind in CLASSES.items() if name != "Interval"
    }


def test_the_readmes_example_runs_where_there_is_no_torch(served: str, series: Path, tmp_path: Path) -> None:
    page = (ROOT / "serving" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(from serving\.client .*?)```", page, re.DOTALL)
    assert "http://127.0.0.1:3000" in example
    shutil.copytree(series, tmp_path / "series")
    program = example.replace("http://127.0.0.1:3000", served) + (
        "\nimport sys\nfound = {name.partition('.')[0] for name in sys.modules}"
        "\nassert not {'torch', 'bentoml', 'components'} & found\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("16 numbers by ctfoundry-wholebody ")
    assert nib.load(tmp_path / "labels.nii.gz").shape == (128, 128, 26)


def test_it_waits_for_its_turn_and_gives_up_when_told(bundle: Path, series: Path, tmp_path: Path) -> None:
    """Four clients and a queue of one: all are answered, and one that has a single try gets the service's line."""
    found: list[Embedding] = []
    tried: list[float] = []
    with running(bundle, tmp_path, CTFOUNDRY_MAX_QUEUE="1") as (url, _):

        def call() -> None:
            with Client(url, tries=100, sleep=wait) as client:
                found.append(client.embed(series))

        def wait(seconds: float) -> None:
            tried.append(seconds)
            time.sleep(seconds)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        line = "files that wait or are worked on: 1, at most 1"
        with Client(url, tries=1) as client, pytest.raises(ServiceError, match=line) as raised:
            _again_and_again(client, series)
        for thread in threads:
            thread.join(timeout=300)
    assert (raised.value.status, len(found)) == (429, 4)
    assert raised.value.retry_after is not None
    assert raised.value.retry_after >= 1
    assert tried
    assert min(tried) >= 1
    assert len({each.embedding for each in found}) == 1


def _again_and_again(client: Client, series: Path) -> None:
    for _ in range(100):
        client.embed(series)


def test_it_opens_both_doors(bundle: Path, series: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, own = authority.pair("server"), authority.pair("client")
    (tmp_path / "tokens").write_text("alice:alice-0123456789abcdef\n")
    options = tuple(Tls(server.certificate, server.key, authority.certificate).arguments())
    port = free_port()
    process = started(bundle, tmp_path, port, options, CTFOUNDRY_TOKENS_FILE=str(tmp_path / "tokens"))
    url, files = f"https://127.0.0.1:{port}", (own.certificate, own.key)
    try:
        for _ in range(600):
            with Client(url, token="alice-0123456789abcdef", ca=authority.certificate, certificate=files) as client:
                with suppress(ServiceError):
                    client.model()
                    break
                time.sleep(0.2)
        with Client(url, token="alice-0123456789abcdef", ca=authority.certificate, certificate=files) as client:
            assert client.embed(series).dim == 16
        with Client(url, token="bob", ca=authority.certificate, certificate=files) as client:
            with pytest.raises(ServiceError) as raised:
                client.embed(series)
            assert raised.value.status == 401
        for options_ in ({"ca": authority.certificate}, {"certificate": files}):
            stranger = Client(url, token="alice-0123456789abcdef", **options_)  # type: ignore[arg-type]
            with stranger, pytest.raises(ServiceError, match="no answer: "):
                stranger.model()
    finally:
        process.terminate()
        process.wait(timeout=30)
