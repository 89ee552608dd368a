"""A hospital's PACS and ours: scans by their UIDs, results into their study, and the gateway at the door."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import httpx
import pydicom
import pytest
from client import PATIENT, ct_slice, nifti, refused, zipped
from conftest import running
from hospital import GATEWAY, STORESCU, Gateway, echo, results_in, send, to_pacs, until, written
from playwright.sync_api import expect, sync_playwright
from released import write_segmenter

from components.bundle.manifest import write_manifest
from serving.client import Client, InPacs, Pacs
from serving.gateway.delivery import delivery_to
from tests.orthanc import TITLE, Orthanc, require_orthanc
from tests.unit.test_serving_classifying import head

pytestmark = pytest.mark.skipif(not STORESCU, reason="storescu not found: apt-get install dcmtk")
CHROMIUM = shutil.which("chromium")
COUNT = 26


def scan(study: str, series: str = "", count: int = COUNT) -> list[bytes]:
    series = series or f"{study}.1"
    return [ct_slice(n, series, StudyInstanceUID=study, FrameOfReferenceUID=f"{study}.9") for n in range(count)]


@pytest.fixture(scope="module")
def release(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head that segments and one that classifies."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("release") / "wholebody"))
    write_segmenter(folder, "organs_segmented", ("liver", "kidney_left"))
    head(folder, "findings/ich", "scan")
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    require_orthanc()
    orthanc = Orthanc(tmp_path_factory.mktemp("orthanc"), {GATEWAY: ("127.0.0.1", 1)})
    yield orthanc
    orthanc.kill()


@pytest.fixture
def pacs(server: Orthanc) -> Orthanc:
    """The PACS, emptied."""
    server.delete()
    return server


@pytest.fixture(scope="module")
def service(release: Path, server: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    opened = {"CTFOUNDRY_FROM_PACS": "1", "CTFOUNDRY_TO_PACS": "1", **to_pacs(server)}
    with running(release, tmp_path_factory.mktemp("bentoml"), **opened) as (address, _):
        yield address


def named(study: str, more: str = "") -> str:
    return f"?study={study}&series={study}.1{more}"


def test_a_scan_that_is_named_is_answered_like_one_that_is_sent(service: str, pacs: Orthanc) -> None:
    images = scan("1.2.10")
    pacs.store(images)
    sent = zipped({f"{n}.dcm": image for n, image in enumerate(images)})
    for route, query in (("embed", ""), ("classify", ""), ("segment", ""), ("segment", "&form=dicom")):
        by_name = httpx.post(f"{service}/{route}{named('1.2.10', query)}", timeout=60)
        itself = httpx.post(f"{service}/{route}?{query.lstrip('&')}", content=sent, timeout=60)
        assert by_name.status_code == itself.status_code == 200, by_name.text
        assert by_name.content == itself.content


def test_one_scan_is_named_and_the_other_sent(service: str, pacs: Orthanc) -> None:
    pacs.store(scan("1.2.11"))
    found = httpx.post(f"{service}/locate{named('1.2.11', '&point_mm=0,0,40')}", content=nifti(), timeout=60)
    assert found.status_code == 200, found.text
    both = "&other_study=1.2.11&other_series=1.2.11.1&point_mm=0,0,40"
    assert httpx.post(f"{service}/locate{named('1.2.11', both)}", timeout=60).status_code == 200


def test_a_result_is_stored_once_in_the_study_of_its_scan(service: str, pacs: Orthanc) -> None:
    pacs.store(scan("1.2.12"))
    for route, kind in (("segment", "SEG"), ("classify", "SR")):
        query = named("1.2.12", "&form=dicom&store=true")
        first, second = (httpx.post(f"{service}/{route}{query}", timeout=60).json() for _ in range(2))
        assert first == second
        assert first["stored"]["study"] == "1.2.12"
        kept = pydicom.dcmread(io.BytesIO(pacs.instance(first["stored"]["instance"])))
        assert (kept.Modality, kept.PatientID) == (kind, PATIENT)
        answered = httpx.post(f"{service}/{route}{named('1.2.12', '&form=dicom')}", timeout=60).content
        assert pydicom.dcmread(io.BytesIO(answered)) == kept
    assert results_in(pacs) == {"1.2.12": ["SEG", "SR"]}


def test_what_cannot_be_named_or_stored_is_one_line(service: str, pacs: Orthanc) -> None:
    pacs.store(scan("1.2.13"))

    def post(query: str, content: bytes = b"") -> httpx.Response:
        return httpx.post(f"{service}/segment{query}", content=content, timeout=60)

    refused(post("?study=1.2.13&series=1.2.99"), 404, "no such series", service)
    refused(post("?study=1.2.13"), 400, "series is missing", service)
    refused(post("?study=../instances&series=1.2"), 400, "not allowed: a DICOM UID", service)
    refused(post("?study=http://evil.example&series=1.2"), 400, "not allowed: a DICOM UID", service)
    refused(post(named("1.2.13"), nifti()), 400, "named, and sent as well", service)
    refused(post(named("1.2.13", "&store=true")), 400, "form=dicom", service)
    refused(post(named("1.2.13", "&store=yes")), 400, "not allowed: false, true", service)


@pytest.fixture
def gateway(tmp_path: Path, service: str, pacs: Orthanc) -> Iterator[Gateway]:
    made = Gateway(tmp_path, service, "dicomweb", to_pacs(pacs), "--quiet", "1", "--patience", "3")
    yield made
    assert made.end() == 0, made.log.read_text()[-3000:]
    said = made.log.read_text() + made.audit.read_text()
    assert PATIENT not in said
    assert "1.2.2" not in said, "it names a study by its UID"


def test_a_study_that_is_sent_comes_back_with_its_answers(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    images = scan("1.2.20")
    folder = written(tmp_path / "sent", images)
    assert echo(gateway.port, "SOMEBODY").returncode != 0, "another title was called"
    done = send(gateway.port, folder)
    assert done.returncode == 0, done.stderr
    until(lambda: len(gateway.audited()) == 1, 60, gateway.log.read_text)
    pacs.store(images)
    assert results_in(pacs) == {"1.2.20": ["SEG", "SR"]}
    (told,) = gateway.audited()
    assert told["outcome"] == "answered"
    assert set(told["answers"].values()) == {"answered"}
    listed = gateway.ask("list").stdout.splitlines()
    assert listed[1].split()[:7] == [told["study"], "answered", "STORESCU", "1", str(COUNT), "2", "0"]

    assert send(gateway.port, folder).returncode == 0  # once more: it is known, and not asked again
    until(lambda: len(gateway.audited()) == 2, 60, gateway.log.read_text)
    assert gateway.audited()[1]["outcome"] == "answered"
    assert results_in(pacs) == {"1.2.20": ["SEG", "SR"]}


def test_images_that_come_late_give_an_answer_of_their_own(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    images = scan("1.2.21")
    assert send(gateway.port, written(tmp_path / "first", images[:-4])).returncode == 0
    until(lambda: len(gateway.audited()) == 1, 60, gateway.log.read_text)
    assert send(gateway.port, written(tmp_path / "rest", images[-4:])).returncode == 0
    until(lambda: len(gateway.audited()) == 2, 60, gateway.log.read_text)
    assert results_in(pacs) == {"1.2.21": ["SEG", "SEG", "SR", "SR"]}


def test_what_cannot_be_answered_ends_with_its_reason(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    scout = ct_slice(0, "1.2.22.1", StudyInstanceUID="1.2.22", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert send(gateway.port, written(tmp_path / "one", [scout])).returncode == 0
    until(lambda: len(gateway.audited()) == 1, 60, gateway.log.read_text)
    (told,) = gateway.audited()
    assert told["outcome"] == "nothing"
    assert results_in(pacs) == {}
    assert gateway.ask("complete", "1.2.22").stderr.strip().endswith("is not being received; see `gateway list`")


def test_a_study_is_complete_when_somebody_says_so(tmp_path: Path, service: str, pacs: Orthanc) -> None:
    gateway = Gateway(tmp_path, service, "dicomweb", to_pacs(pacs), "--quiet", "3600", "--patience", "3600")
    assert send(gateway.port, written(tmp_path / "sent", scan("1.2.23"))).returncode == 0
    listed = gateway.ask("list").stdout.splitlines()[1].split()
    assert (listed[1], listed[4]) == ("receiving", str(COUNT))
    assert gateway.ask("complete", "1.2.23").returncode == 0
    until(lambda: len(gateway.audited()) == 1, 60, gateway.log.read_text)
    assert results_in(pacs) == {"1.2.23": ["SEG", "SR"]}
    assert gateway.end() == 0


def test_answers_go_to_a_node_by_c_store(tmp_path: Path, service: str, pacs: Orthanc) -> None:
    node = f"{TITLE}@127.0.0.1:{pacs.dicom_port}"
    gateway = Gateway(tmp_path, service, node, to_pacs(pacs), "--quiet", "1")
    assert send(gateway.port, written(tmp_path / "sent", scan("1.2.24"))).returncode == 0
    until(lambda: len(gateway.audited()) == 1, 60, gateway.log.read_text)
    assert results_in(pacs) == {"1.2.24": ["SEG", "SR"]}
    assert gateway.end() == 0


def test_a_study_that_the_pacs_has_is_found_and_answered(tmp_path: Path, service: str, pacs: Orthanc) -> None:
    today = date.today().strftime("%Y%m%d")
    images = [pydicom.dcmread(io.BytesIO(image)) for image in scan("1.2.25")]
    for image in images:
        image.StudyDate = today
    old = scan("1.2.26")
    files = []
    for image in images:
        stream = io.BytesIO()
        image.save_as(stream, enforce_file_format=True)
        files.append(stream.getvalue())
    pacs.store([*files, *old])
    gateway = Gateway(tmp_path, service, "dicomweb", to_pacs(pacs), "--poll", "1", "--quiet", "1")
    until(lambda: len(gateway.audited()) == 1, 60, gateway.log.read_text)
    assert results_in(pacs) == {"1.2.25": ["SEG", "SR"], "1.2.26": []}
    assert gateway.audited()[0]["who"] == "dicomweb"
    assert gateway.end() == 0
    gateway.start()  # what it has fetched it knows, also after a restart
    assert send(gateway.port, written(tmp_path / "sent", scan("1.2.27"))).returncode == 0  # it works meanwhile
    until(lambda: len(gateway.audited()) == 2, 60, gateway.log.read_text)
    assert results_in(pacs)["1.2.25"] == ["SEG", "SR"]
    assert [told["who"] for told in gateway.audited()] == ["dicomweb", "STORESCU"]
    assert gateway.end() == 0


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH: apt-get install chromium")
def test_the_page_opens_a_series_of_the_pacs_and_stores_its_structures(service: str, pacs: Orthanc) -> None:
    pacs.store(scan("1.2.40"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(service)
        page.get_by_label("Study UID").fill("1.2.40")
        page.get_by_label("Series UID").fill("1.2.40.9")
        page.get_by_role("button", name="Open from the PACS").click()
        expect(page.locator("#error")).to_have_text("PACS: it has no such series in this study", timeout=60_000)
        page.get_by_label("Series UID").fill("1.2.40.1")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("Open: a series of the PACS.", timeout=120_000)
        assert "liver" in page.locator("#answers").inner_text()
        page.get_by_role("button", name="Store structures in the PACS").click()
        expect(page.locator("#status")).to_have_text("The structures are stored in the scan's study.", timeout=60_000)
        browser.close()
    assert results_in(pacs) == {"1.2.40": ["SEG"]}


def test_the_client_names_scans_and_has_results_stored(service: str, pacs: Orthanc) -> None:
    pacs.store(scan("1.2.50"))
    one = InPacs("1.2.50", "1.2.50.1")
    with Client(service) as client:
        assert client.model().pacs == Pacs(reads=True, stores=True)
        assert client.embed(one).found.instances == COUNT
        assert client.locate(one, one, (0.0, 0.0, 40.0)).places
        kept = [client.segment(one, store=True).stored, client.classify(one, store=True).stored]
        kept.append(client.saliency(one, head="findings/ich", store=True).stored)
    assert {each.study for each in kept if each} == {"1.2.50"}
    assert results_in(pacs) == {"1.2.50": ["OT", "SEG", "SR"]}


@pytest.mark.parametrize("way", ["dicomweb", "node"])
def test_a_delivery_tells_what_is_there_from_what_was_lost(
    way: str, pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in to_pacs(pacs).items():
        monkeypatch.setenv(name, value)
    to = "dicomweb" if way == "dicomweb" else f"{TITLE}@127.0.0.1:{pacs.dicom_port}"
    delivery, file = delivery_to(to, GATEWAY), written(tmp_path / "one", scan("1.2.60", count=1)) / "000.dcm"
    pacs.store(scan("1.2.60", count=3)[1:])  # others of the same series do not count
    assert delivery.holds(file) is False
    delivery.deliver(file)
    assert delivery.holds(file) is True
    pacs.delete()
    assert delivery.holds(file) is False
