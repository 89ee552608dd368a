"""What the service shows to anyone who reaches it: its page, its document, its figures, its headers."""

from __future__ import annotations

import re
import secrets

import httpx
import pytest
from client import refused
from documented import DOCUMENT
from openapi_spec_validator import OpenAPIV31SpecValidator

from serving.guard import HEADERS, KEPT
from serving.routes import BY_PATH, ROUTES

PATHS = [told.path for told in ROUTES]


def test_about_names_the_model_and_asks_for_nothing_from_elsewhere(url: str) -> None:
    answer = httpx.get(f"{url}/about", timeout=5)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    model = httpx.get(f"{url}/model", timeout=5).json()
    for word in (model["name"], model["digest"], *PATHS):
        assert word in answer.text
    assert "<script" not in answer.text
    assert "style=" not in answer.text
    assert re.findall(r"(?:src|href|action|url)\s*[=(]\s*[\"']?\s*(?:[a-z]+:|//)", answer.text, re.IGNORECASE) == []
    for link in re.findall(r'href="([^"]*)"', answer.text):
        told = httpx.get(httpx.URL(f"{url}/").join(link), timeout=5)
        assert told.status_code in (200, 503), link
        if link.endswith(".css"):
            assert told.headers["content-type"].startswith("text/css")
            assert "url(" not in told.text
            assert "@import" not in told.text


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "PURGE"])
@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/schema.json", "/static_content/index.css", "/embed/"])
def test_every_answer_has_the_headers_that_keep_a_browser_here(url: str, method: str, path: str) -> None:
    answer = httpx.request(method, f"{url}{path}", timeout=10)
    public = path in BY_PATH and BY_PATH[path].public
    for name, value in (HEADERS | (KEPT if public else {})).items():
        assert answer.headers.get_list(name.decode()) == [value.decode()], f"{method} {path}: {answer.status_code}"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    if path not in PATHS and method != "HEAD":
        assert answer.status_code == 404
        assert list(answer.json()) == ["error"]


def test_the_document_is_valid_and_describes_every_route(url: str) -> None:
    told = httpx.get(f"{url}/docs.json", timeout=5).json()
    OpenAPIV31SpecValidator(told).validate()
    assert sorted(told["paths"]) == sorted(PATHS)
    model = httpx.get(f"{url}/model", timeout=5).json()
    assert (told["info"]["title"], told["info"]["version"]) == (model["name"], model["digest"])
    assert told["components"]["schemas"] == DOCUMENT["components"]["schemas"]


def figures(url: str) -> dict[str, float]:
    """By name and labels."""
    lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_the_figures_are_as_many_whatever_is_asked_for(url: str) -> None:
    for path in ("/nothing", "/embed"):  # a first of each outcome
        httpx.get(f"{url}{path}", timeout=5)
    before = figures(url)
    with httpx.Client(timeout=10) as client:
        for number in range(300):
            word = secrets.token_hex(8)
            path = (f"/{word}", f"/metrics/{word}", f"/embed?{word}={word}", f"//{word}", f"/static_content/{word}")
            client.get(f"{url}{path[number % len(path)]}", headers={word: word, "user-agent": word})
    after = figures(url)
    assert after.keys() == before.keys()
    assert len(after) < 300
    unknown = 'ctfoundry_requests_total{outcome="refused_404",route="other"}'
    assert after[unknown] - before[unknown] == 240
    assert not any("path" in name or "endpoint" in name for name in after)
    for name in ("uploads", "waiting", "working"):
        assert after[f"ctfoundry_{name}"] == 0
    assert after["ctfoundry_ready"] == 1


def test_a_path_and_a_method_that_there_are_not_are_one_line(url: str) -> None:
    unknown = httpx.get(f"{url}/nothing", timeout=5)
    refused(unknown, 404, "there is no such path", url)
    other = httpx.put(f"{url}/embed", timeout=5)
    refused(other, 405, "method PUT is not allowed: POST", url)
    assert other.headers["allow"] == "POST"
