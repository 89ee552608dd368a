"""An evaluation's cases in a real Chromium: from the disk, with no service, where no name leads anywhere."""

from __future__ import annotations

import re
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from components.tables import read_table
from flows.cases.command import run
from tests.chromium import CHROMIUM, SECONDS, WHY, Visit, chromium, coloured, grey
from tests.evaluated import LINE, SEGMENTED, write_line

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY)


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """The page, opened at a place with a blank in its name, in a narrow window."""
    root = tmp_path_factory.mktemp("line")
    write_line(root)
    out = tmp_path_factory.mktemp("to look at") / "cases"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("components.arithmetic.enter", lambda _: None)  # it would begin pytest anew
        assert run(Namespace(line=LINE, out=out, task=[], each=1)) == 0
    known = read_table(root / "data" / LINE / "evaluate" / "cases.parquet")
    shutil.rmtree(root)  # what is looked at needs nothing of it
    with chromium() as browser:
        opened = Visit(browser.new_page(viewport={"width": 420, "height": 900}))
        opened.page.goto((out / "index.html").as_uri())
        opened.known = known  # type: ignore[attr-defined]
        yield opened


def shown(visit: Visit, button: re.Pattern[str], part: str) -> None:
    rows = visit.page.locator("#list div").filter(has=visit.page.get_by_text(part, exact=True))
    rows.get_by_role("button", name=button).click()
    expect(visit.page.locator("#status")).to_have_text(re.compile(rf"^Shown: {part}, "), timeout=SECONDS)
    expect(visit.page.locator("#error")).to_be_hidden()


def test_a_segmented_scan_is_drawn_with_reference_and_prediction_and_the_tables_dice(visit: Visit) -> None:
    shown(visit, re.compile("^worst"), SEGMENTED)
    page, known = visit.page, visit.known  # type: ignore[attr-defined]
    own = known[(known["task"] == SEGMENTED) & (known["method"] == "encoder")]
    means = own.groupby(own["case"].str.split("/").str[0])["score"].mean()
    assert f"Mean Dice\n{means.min():.3f}" in page.locator("#facts").inner_text()
    rows = own[own["case"].str.startswith(str(means.idxmin()))].dropna(subset="score").to_dict("records")
    assert len(rows) > 1
    for row in rows:
        told = page.locator("#structures tr").filter(has_text=row["label"]).inner_text()
        assert told.endswith(f"{row['score']:.3f}"), told
    seen = {}
    for key in "nprb":
        page.keyboard.press(key)
        seen[key] = visit.drawn()
    assert grey(seen["n"]) > 0.1, "the scan is not drawn"
    for key in "prb":
        assert coloured(seen[key]) > coloured(seen["n"]) + 0.05, f"no overlay after {key}"
    assert np.abs(seen["p"] - seen["r"]).mean() > 0.5, "reference and prediction look the same"
    page.get_by_role("button", name="Hide all").click()
    assert coloured(visit.drawn()) < coloured(seen["n"]) + 0.01


def test_a_point_is_shown_with_its_label_and_probability_at_the_crosshair(visit: Visit) -> None:
    shown(visit, re.compile("^best"), "organs")
    page, known = visit.page, visit.known  # type: ignore[attr-defined]
    own = known[(known["task"] == "organs") & (known["method"] == "encoder")]
    best = own["score"].where(own["label"] == "present", 1 - own["score"]).max()
    facts = page.locator("#facts").inner_text()
    assert f"Calibrated probability of it\n{100 * best:.1f} %" in facts
    place = [float(word) for word in page.locator("#place").inner_text().split()[1:6:2]]
    point = (20.0, 5.0, 30.0) if "Label\npresent" in facts else (-25.0, 0.0, 33.0)
    assert place == pytest.approx(point, abs=1.6)
    assert "Of a test." in page.locator("#findings").inner_text()
    expect(page.locator("#overlays")).to_be_hidden()


def test_it_needs_only_its_folder_and_fits_a_narrow_window(visit: Visit) -> None:
    folder = visit.page.url.removesuffix("index.html")
    assert [url for url in visit.asked if not url.startswith((folder, "blob:null/", "data:"))] == []
    assert visit.complaints == []
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than the window"


def test_a_file_that_is_gone_is_told_and_the_other_cases_stay(visit: Visit) -> None:
    gone = Path(visit.page.evaluate("decodeURI(location.pathname)")).parent / "volumes"
    shown(visit, re.compile("^worst"), "organs")
    kept = gone.rename(gone.with_name("elsewhere"))
    visit.page.locator("#list").get_by_role("button", name=re.compile("^best")).last.click()
    expect(visit.page.locator("#error")).to_contain_text("is not there; the folder must stay whole")
    kept.rename(gone)
    shown(visit, re.compile("^best"), SEGMENTED)
