"""The service's own page."""

from __future__ import annotations

from html.parser import HTMLParser

from serving.page import STYLE, page
from serving.routes import ROUTES

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
        if tag not in ("meta", "link"):
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


def test_it_has_no_script_and_no_link_to_elsewhere() -> None:
    seen = Seen(page(MODEL, tokens=True))
    assert not {"script", "iframe", "img", "form", "object", "style"} & set(seen.tags)
    known = {told.path for told in ROUTES}
    assert {f"/{link.removeprefix('.')}" for link in seen.links} <= known
    assert "Authorization: Bearer TOKEN" in seen.text
    assert "None: this release gives embeddings" in seen.text
    assert "url(" not in STYLE.read_text()


def test_what_a_release_says_is_text() -> None:
    text = page({**MODEL, "name": "<script>x</script>", "heads": {"<b>$digest": 'a"b'}}, tokens=False)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;$digest" in text
