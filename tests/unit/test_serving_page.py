"""The service's pages, and the files that they are made of."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from serving.page import page
from serving.routes import ROUTES
from serving.static_files import FILES, FOLDER, static_routes

NIIVUE = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # of dist/ in npm's @niivue/niivue 0.69.0
OURS = [name for name in FILES if name not in ("niivue", "licences")]
BUNDLED = (
    "@niivue/niivue", "gl-matrix", "fflate", "nifti-reader-js", "zarrita", "@zarrita/storage", "numcodecs",
    "array-equal", "@lukeed/uuid", "@ungap/structured-clone",
)  # fmt: skip
MODEL = {"name": "ctfoundry-wholebody", "line": "wholebody", "digest": "0123abcd" * 8}


class Seen(HTMLParser):
    """Tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "style"
            if name in ("href", "src"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_names_model_heads_routes_and_how_to_call_them() -> None:
    seen = Seen(page({**MODEL, "heads": {"findings/ich": "scan", "organs": "point"}}, tokens=False))
    for word in (*MODEL.values(), "findings/ich", "organs", "POST /embed", "curl -F file=@series.zip", "point_mm="):
        assert word in seen.text, word
    for told in ROUTES:
        assert told.path in seen.text
        assert told.says in seen.text
    assert "Authorization" not in seen.text


def test_about_has_no_script_and_no_link_to_elsewhere() -> None:
    seen = Seen(page(MODEL, tokens=True))
    assert not {"script", "iframe", "img", "form", "object", "style"} & set(seen.tags)
    known = {told.path for told in ROUTES}
    assert {f"/{link.removeprefix('.')}" for link in seen.links} <= known
    assert "Authorization: Bearer TOKEN" in seen.text
    assert "None: this release gives embeddings" in seen.text


def text_of(name: str) -> str:
    return FILES[name].content.decode()


def test_the_page_holds_no_script_itself_and_links_to_nothing_elsewhere() -> None:
    text = text_of("index")
    seen = Seen(text)
    assert not {"iframe", "img", "form", "object", "style", "base"} & set(seen.tags)
    assert re.findall(r"<script(?![^>]* src=)", text) == []
    known = {told.path for told in ROUTES}
    assert {f"/{link}" for link in seen.links if link != "data:,"} <= known
    assert "no medical device" in seen.text


@pytest.mark.parametrize("name", OURS)
def test_our_files_name_no_address_and_make_no_markup_of_text(name: str) -> None:
    text = text_of(name)
    assert "://" not in text
    for word in ("url(", "@import", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in text, word
    if FILES[name].media_type == "text/javascript":
        assert text.startswith('"use strict";\n')
        assert {f"/{part}" for part in re.findall(r'from "\./([^"]*)"', text)} <= {told.path for told in ROUTES}


def test_niivue_is_the_one_of_its_package_and_its_licences_are_told() -> None:
    assert hashlib.sha256(FILES["niivue"].content).hexdigest() == NIIVUE
    heads = re.findall(r"={80}\n(.*) \(", text_of("licences"))
    for package in BUNDLED:
        assert any(head.startswith(package) for head in heads), package
    assert "Redistributions in binary form must reproduce" in text_of("licences")


def test_just_the_listed_files_are_there() -> None:
    served = {file.content for file in FILES.values()}
    rest = [path.name for path in FOLDER.iterdir() if path.read_bytes() not in served]
    assert rest == ["about.html"], "a template of a page; else a file that nobody is served"


def test_a_browser_that_has_a_file_gets_it_not_again() -> None:
    async def work() -> None:
        transport = httpx.ASGITransport(Starlette(routes=list(static_routes())))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            first = await client.get("/page.js")
            assert first.headers["content-type"].startswith("text/javascript")
            again = await client.get("/page.js", headers={"if-none-match": first.headers["etag"]})
            assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
            other = await client.get("/viewer.js", headers={"if-none-match": first.headers["etag"]})
            assert (other.status_code, other.content) == (200, FILES["viewer"].content)

    anyio.run(work)


def test_what_a_release_says_is_text() -> None:
    text = page({**MODEL, "name": "<script>x</script>", "heads": {"<b>$digest": 'a"b'}}, tokens=False)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;$digest" in text
