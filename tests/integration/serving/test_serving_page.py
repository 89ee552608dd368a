"""The page in a real Chromium: a scan dropped in is drawn with its answers, and nothing leaves the service."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from client import PATIENT, ct_slice, nifti
from conftest import running
from playwright.sync_api import Browser, FilePayload, Page, Route, expect
from released import write_segmenter

from components.bundle.manifest import write_manifest
from tests.chromium import CHROMIUM, SECONDS, WHY, Visit, chromium, coloured, grey
from tests.unit.test_serving_classifying import head

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY)
SERIES = "1.2.826.0.1.3680043.8.498.1"
STRUCTURES = ("liver", "kidney_left", "thing of ours")
TOKEN = "a-token-of-the-page"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def viewed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that asks for a token, of a release with heads of every kind."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("decoder") / "wholebody"))
    write_segmenter(folder, "organs_segmented", STRUCTURES)
    write_segmenter(folder, "vessels_segmented", ("aorta", "vena cava"))
    head(folder, "findings/ich", "scan")
    head(folder, "organs", "point")
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"page:{TOKEN}\n")
    with running(folder, tmp_path_factory.mktemp("bentoml"), CTFOUNDRY_TOKENS_FILE=str(tokens)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def sheared_slice(n: int) -> bytes:
    """Of a series that training would have rejected, so that the answers warn."""
    return ct_slice(n, SERIES, FrameOfReferenceUID="1.2.5", ImagePositionPatient=[-160, -160 + n, 3 * n])


def visited(browser: Browser, address: str, headers: dict[str, str] | None = HEADERS) -> Visit:
    """The page; its browser sends the token with everything, so that the page need not ask for it."""
    page = browser.new_page(viewport={"width": 1400, "height": 900}, extra_http_headers=headers)
    visit = Visit(page)
    visit.page.goto(address)
    return visit


@pytest.fixture(scope="module")
def opened(browser: Browser, viewed: str) -> Visit:
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
    plain = opened.drawn()
    page.locator("#opacity").fill("0.6")
    over = opened.drawn()
    assert grey(plain) > 0.1, "the scan is not drawn"
    assert coloured(over) > coloured(plain) + 0.05, "the structures are not drawn"
    page.get_by_role("button", name="Hide all").click()
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
    lung = opened.drawn()
    page.keyboard.press("2")
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


def chosen_head(page: Page) -> str:
    return page.locator("#segment-head").input_value()


def test_any_head_that_segments_can_be_chosen_and_is_asked_once(opened: Visit) -> None:
    page, status = opened.page, opened.page.locator("#status")
    assert page.locator("#segment-head option").all_inner_texts() == ["organs_segmented", "vessels_segmented"]
    findings = page.locator("#findings").inner_text()
    before = opened.drawn()
    page.locator("#segment-head").select_option("vessels_segmented")
    expect(status).to_have_text("The structures of vessels_segmented are shown.", timeout=SECONDS)
    told = page.locator("#structures").inner_text()
    assert "aorta" in told
    assert "liver" not in told
    assert np.abs(opened.drawn() - before).mean() > 1, "the other head's structures look the same"
    assert page.locator("#findings").inner_text() == findings, "what the classifying heads found stays"
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save structures.json").click()
    assert '"part": "vessels_segmented"' in saved.value.path().read_text()
    asked = len(opened.asked)
    page.locator("#segment-head").select_option("organs_segmented")
    expect(status).to_have_text("The structures of organs_segmented are shown.", timeout=SECONDS)
    assert "liver" in page.locator("#structures").inner_text()
    assert [url for url in opened.asked[asked:] if "/segment" in url] == []


def test_what_cannot_be_read_is_told_in_the_services_words(browser: Browser, viewed: str) -> None:
    visit = visited(browser, viewed)
    visit.page.set_input_files("#files", [{"name": "a.zip", "mimeType": "application/zip", "buffer": b"no scan"}])
    expect(visit.page.locator("#error")).to_contain_text("neither a zip", timeout=SECONDS)
    expect(visit.page.locator("#seen")).to_be_hidden()
    expect(visit.page.locator("#sending")).to_be_hidden()


def test_a_folder_dropped_in_is_opened_and_dropped_text_is_no_scan(
    browser: Browser, viewed: str, tmp_path: Path
) -> None:
    folder = tmp_path / "study" / "series"
    folder.mkdir(parents=True)
    for n in range(26):
        (folder / f"{n}.dcm").write_bytes(ct_slice(n, SERIES))
    visit = visited(browser, viewed)
    drop(visit.page, {"files": [str(tmp_path / "study")]})
    expect(visit.page.locator("#status")).to_contain_text("Open: 26 files", timeout=SECONDS)
    visit.page.locator("#opacity").fill("0")
    assert grey(visit.drawn()) > 0.1, "the scan is not drawn"
    drop(visit.page, {"items": [{"mimeType": "text/plain", "data": "a word"}]})
    expect(visit.page.locator("#error")).to_contain_text("no file was dropped")
    expect(visit.page.locator("#seen")).to_be_visible()
    assert visit.complaints == []
    visit.page.close()


def drop(page: Page, data: dict[str, list[object]]) -> None:
    """What a hand does: drag it over the zone and let go."""
    page.locator("#drop").scroll_into_view_if_needed()
    zone = page.locator("#drop").bounding_box()
    assert zone is not None
    with_data = {"items": [], "files": [], "dragOperationsMask": 1, **data}
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        at = {"x": zone["x"] + 20, "y": zone["y"] + 20}
        devtools.send("Input.dispatchDragEvent", {"type": kind, **at, "data": with_data})
        if kind == "dragOver":
            expect(page.locator("#drop")).to_have_class(re.compile("over"))


def volume() -> list[FilePayload]:
    return [{"name": "scan.nii.gz", "mimeType": "application/gzip", "buffer": nifti()}]


def test_an_upload_is_cancelled_and_the_page_goes_on(browser: Browser, viewed: str) -> None:
    visit = visited(browser, viewed)
    page = visit.page
    devtools = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 20_000}
    devtools.send("Network.enable")
    devtools.send("Network.emulateNetworkConditions", slow)
    slices: list[FilePayload] = [
        {"name": f"{n}.dcm", "mimeType": "application/dicom", "buffer": ct_slice(n, SERIES)} for n in range(26)
    ]
    page.set_input_files("#files", slices)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#error")).to_have_text("cancelled")
    expect(page.locator("#status")).to_have_text("No scan is open.")
    expect(page.locator("#sending")).to_be_hidden()
    devtools.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
    page.set_input_files("#files", volume())
    expect(page.locator("#status")).to_contain_text("Open: 1 file", timeout=SECONDS)
    expect(page.locator("#error")).to_be_hidden()
    assert (
        'ctfoundry_requests_total{outcome="disconnected",route="preview"}'
        in httpx.get(f"{viewed}/metrics", headers=HEADERS).text
    )
    page.close()


def test_after_a_cancel_nothing_more_is_asked_and_another_scan_is_told_nothing_of_it(
    browser: Browser, viewed: str
) -> None:
    visit, held = visited(browser, viewed), list[Route]()
    page = visit.page
    page.route("**/classify", lambda route: held.append(route), times=2)  # it is asked, and never answered
    page.set_input_files("#files", volume())
    expect(page.locator("#status")).to_contain_text("Findings", timeout=SECONDS)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#error")).to_have_text("cancelled")
    expect(page.locator("#ask-point")).to_be_visible()  # the scan stays
    assert [url for url in visit.asked if "/segment" in url] == []
    page.set_input_files("#files", volume())
    expect(page.locator("#status")).to_contain_text("Findings", timeout=SECONDS)
    page.set_input_files("#files", volume())
    expect(page.locator("#status")).to_contain_text("Open: 1 file", timeout=SECONDS)
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#sending")).to_be_hidden()
    assert len(held) == 2
    page.close()


def test_the_token_is_asked_for_and_a_wrong_one_is_told(browser: Browser, viewed: str) -> None:
    visit = visited(browser, viewed, headers=None)
    page, error = visit.page, visit.page.locator("#error")
    expect(page.locator("#access")).to_be_visible()
    expect(error).to_contain_text("token")
    page.locator("#token").fill("one-that-nobody-gave")
    page.get_by_role("button", name="Use it").click()
    expect(error).to_contain_text("token")
    with page.expect_response("**/docs.json"), page.expect_response("**/model"):
        page.set_input_files("#files", volume())
    expect(error).to_contain_text("token")
    expect(page.locator("#status")).to_have_text("No scan is open.")
    page.locator("#token").fill(TOKEN)
    page.locator("#token").press("Enter")
    expect(page.locator("#name")).to_have_text("ctfoundry-wholebody")
    expect(error).to_be_hidden()
    page.set_input_files("#files", volume())
    expect(page.locator("#status")).to_contain_text("Open: 1 file", timeout=SECONDS)
    assert TOKEN not in page.content()
    assert [url for url in visit.asked if TOKEN in url] == []
    page.close()


def test_a_service_that_is_gone_is_told_in_words(browser: Browser, viewed: str) -> None:
    visit = visited(browser, viewed)
    page = visit.page
    expect(page.locator("#name")).to_have_text("ctfoundry-wholebody")
    page.context.set_offline(True)
    page.set_input_files("#files", volume())
    expect(page.locator("#error")).to_contain_text("the service does not answer", timeout=SECONDS)
    expect(page.locator("#status")).to_have_text("No scan is open.")
    page.close()
