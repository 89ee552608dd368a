"""The page in a real Chromium: a scan dropped in is drawn with its answers, and nothing leaves the service."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from client import PATIENT, ct_slice
from conftest import running
from PIL import Image
from playwright.sync_api import FilePayload, Page, expect, sync_playwright
from released import write_segmenter

from components.bundle.manifest import write_manifest
from tests.unit.test_serving_classifying import head

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH: apt-get install chromium")
SERIES = "1.2.826.0.1.3680043.8.498.1"
STRUCTURES = ("liver", "kidney_left", "thing of ours")
OPTIONS = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no name leads anywhere
SECONDS = 120_000


@dataclass
class Visit:
    """A page, and what its browser complained of and asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))

    def drawn(self) -> npt.NDArray[np.float64]:
        """Colours of the canvas, rows x columns x 3."""
        with Image.open(io.BytesIO(self.page.locator("#canvas").screenshot())) as image:
            return np.asarray(image.convert("RGB"), dtype=float)


def grey(colours: npt.NDArray[np.float64]) -> float:
    """Share of pixels that are neither black nor coloured."""
    return float(((np.ptp(colours, axis=2) < 8) & (colours.mean(axis=2) > 30)).mean())


def coloured(colours: npt.NDArray[np.float64]) -> float:
    return float((np.ptp(colours, axis=2) > 40).mean())


@pytest.fixture(scope="module")
def viewed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("decoder") / "wholebody"))
    write_segmenter(folder, "organs_segmented", STRUCTURES)
    head(folder, "findings/ich", "scan")
    head(folder, "organs", "point")
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    with running(folder, tmp_path_factory.mktemp("bentoml")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=OPTIONS)
        yield opened
        opened.close()


def sheared_slice(n: int) -> bytes:
    """Of a series that training would have rejected, so that the answers warn."""
    return ct_slice(n, SERIES, FrameOfReferenceUID="1.2.5", ImagePositionPatient=[-160, -160 + n, 3 * n])


def visited(browser: Any, address: str, **options: Any) -> Visit:
    visit = Visit(browser.new_page(viewport={"width": 1400, "height": 900}, **options))
    visit.page.goto(address)
    return visit


@pytest.fixture(scope="module")
def opened(browser: Any, viewed: str) -> Visit:
    """The page, with a series chosen as the files that a scanner writes."""
    visit = visited(browser, viewed)
    files: list[FilePayload] = [
        {"name": f"{SERIES}.{n}.dcm", "mimeType": "application/dicom", "buffer": sheared_slice(n)} for n in range(26)
    ]
    visit.page.set_input_files("#files", files)
    expect(visit.page.locator("#status")).to_contain_text("Open: 26 files", timeout=SECONDS)
    return visit


def test_a_series_is_drawn_with_its_structures(opened: Visit) -> None:
    page = opened.page
    expect(page.locator("#error")).to_be_hidden()
    page.locator("#opacity").fill("0")
    page.wait_for_timeout(300)
    plain = opened.drawn()
    page.locator("#opacity").fill("0.6")
    page.wait_for_timeout(300)
    over = opened.drawn()
    assert grey(plain) > 0.1, "the scan is not drawn"
    assert coloured(over) > coloured(plain) + 0.05, "the structures are not drawn"
    page.get_by_role("button", name="Hide all").click()
    page.wait_for_timeout(300)
    assert coloured(opened.drawn()) == pytest.approx(coloured(plain), abs=0.01)
    page.get_by_role("button", name="Show all").click()
    answers = page.locator("#answers").inner_text()
    assert "liver" in answers
    assert "Of a test." in answers
    assert "mm:" in page.locator("#place").inner_text()


def test_warnings_stand_before_the_answers(opened: Visit) -> None:
    order = [one.get_attribute("id") for one in opened.page.locator("#answers > div").all()]
    assert order.index("warnings") < min(order.index(name) for name in ("findings", "structures"))
    assert "Warning: " in opened.page.locator("#warnings").inner_text()


def test_keys_choose_the_window_and_move_the_crosshair(opened: Visit) -> None:
    page = opened.page
    page.locator("#canvas").focus()
    page.keyboard.press("1")
    assert page.locator("#windows button[aria-pressed=true]").inner_text() == "1 Lung"
    page.wait_for_timeout(300)
    lung = opened.drawn()
    page.keyboard.press("2")
    page.wait_for_timeout(300)
    assert np.abs(opened.drawn() - lung).mean() > 5, "another window looks the same"
    page.keyboard.press("PageUp")  # from the middle of the scan, between two slices, onto one
    before = page.locator("#place").inner_text()
    page.keyboard.press("PageUp")
    after = page.locator("#place").inner_text()
    assert float(after.split()[5]) == pytest.approx(float(before.split()[5]) + 3, abs=0.11), "one slice up"


def test_heads_answer_and_what_they_rest_on_is_drawn(opened: Visit) -> None:
    page, status = opened.page, opened.page.locator("#status")
    assert "findings/ich" in page.locator("#findings").inner_text()
    page.get_by_role("button", name="Hide all").click()
    page.get_by_role("button", name="Ask at the crosshair").click()
    expect(status).to_contain_text("Answered at", timeout=SECONDS)
    assert "organs" in page.locator("#points").inner_text()
    plain = coloured(opened.drawn())
    for part in ("organs", "findings/ich"):
        page.locator("#saliency-head").select_option(part)
        page.get_by_role("button", name="Show", exact=True).click()
        expect(status).to_contain_text("is shown: the upper half", timeout=SECONDS)
        page.locator("#status").evaluate("element => { element.textContent = ''; }")
    page.wait_for_timeout(500)
    assert coloured(opened.drawn()) > plain + 0.01, "the map is not drawn"
    expect(page.locator("#nearest")).to_be_empty()  # no index is served


def test_the_crosshairs_place_is_found_in_a_second_scan(opened: Visit) -> None:
    page, status = opened.page, opened.page.locator("#status")
    other: list[FilePayload] = [
        {"name": f"{n}.dcm", "mimeType": "application/dicom", "buffer": ct_slice(n, f"{SERIES}.9")} for n in range(26)
    ]
    page.set_input_files("#other", other)
    expect(status).to_contain_text("The second scan is open", timeout=SECONDS)
    page.get_by_role("button", name="Find the crosshair").click()
    expect(status).to_contain_text("crosshair is at the place", timeout=SECONDS)
    told = page.locator("#points").inner_text()
    place = [float(number) for number in told.removeprefix("In the second scan: ").split(" mm")[0].split(", ")]
    there = [float(word) for word in page.locator("#other-place").inner_text().split()[1:6:2]]
    assert there == pytest.approx(place, abs=3.1), "the crosshair of the second scan is at the place, to a voxel"
    assert "A place is found in every scan" in told


def test_no_uid_and_no_patient_is_on_the_page_and_nothing_leaves_the_service(opened: Visit, viewed: str) -> None:
    content = opened.page.content()
    assert SERIES not in content
    assert PATIENT not in content
    assert "1.2.3" not in opened.page.locator("main").inner_text()
    assert opened.complaints == []
    elsewhere = [url for url in opened.asked if not url.startswith((f"{viewed}/", f"blob:{viewed}/", "data:"))]
    assert elsewhere == []
    assert f"{viewed}/preview" in opened.asked


def test_what_cannot_be_read_is_told_in_the_services_words(browser: Any, viewed: str) -> None:
    visit = visited(browser, viewed)
    visit.page.set_input_files("#files", [{"name": "a.zip", "mimeType": "application/zip", "buffer": b"no scan"}])
    expect(visit.page.locator("#error")).to_contain_text("neither a zip", timeout=SECONDS)
    expect(visit.page.locator("#seen")).to_be_hidden()
    expect(visit.page.locator("#sending")).to_be_hidden()
