"""A real Chromium, to which no name leads anywhere, and what a page of ours shows and asks for in it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")
WHY = "chromium is not on the PATH: apt-get install chromium"
OPTIONS = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
SECONDS = 120_000  # at most, for what is awaited


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, headless."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=OPTIONS)
        yield opened
        opened.close()


@dataclass
class Visit:
    """A page, and what its browser complained of and asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on(
            "console", lambda said: said.type == "error" and self.complaints.append(f"{said.text} {said.location}")
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))

    def drawn(self) -> npt.NDArray[np.float64]:
        """Colours of the canvas, rows x columns x 3, after what was asked for last is drawn."""
        self.page.wait_for_timeout(300)
        with Image.open(io.BytesIO(self.page.locator("#canvas").screenshot())) as image:
            return np.asarray(image.convert("RGB"), dtype=float)


def grey(colours: npt.NDArray[np.float64]) -> float:
    """Share of pixels that are neither black nor coloured."""
    return float(((np.ptp(colours, axis=2) < 8) & (colours.mean(axis=2) > 30)).mean())


def coloured(colours: npt.NDArray[np.float64]) -> float:
    """Share of pixels that have a colour."""
    return float((np.ptp(colours, axis=2) > 40).mean())
