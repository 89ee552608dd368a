"""The page ``/about``: what is served and how to call it. It has no script and asks for nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from serving.asking import POINT
from serving.routes import ROUTES, Told

PAGE = Path(__file__).with_name("static") / "about.html"
ADDRESS = "http://HOST:PORT"


def page(model: Mapping[str, Any], tokens: bool) -> str:
    """The page as HTML.

    Args:
        model: as ``GET /model`` gives it.
        tokens: whether a client must send one.
    """
    texts = {name: escape(str(model[name])) for name in ("name", "line", "digest")}
    access = "Send your token with each request: <code>Authorization: Bearer TOKEN</code>." if tokens else ""
    parts = {"heads": _heads(model.get("heads", {})), "routes": _routes(), "access": access, "calls": _calls(tokens)}
    return Template(PAGE.read_text(encoding="utf-8")).substitute(texts | parts)


def _heads(heads: Mapping[str, str]) -> str:
    if not heads:
        return "<p>None: this release gives embeddings and answers no question.</p>"
    items = (f"<li><code>{escape(part)}</code>, which sees a {escape(sees)}</li>" for part, sees in heads.items())
    return f"<ul>\n{chr(10).join(items)}\n</ul>"


def _routes() -> str:
    return "\n".join(f"<tr><td><code>{_called(told)}</code></td><td>{escape(told.says)}</td></tr>" for told in ROUTES)


def _called(told: Told) -> str:
    name = escape(f"{told.methods[0]} {told.path}")
    return f'{told.methods[0]} <a href="{told.path[1:] or "."}">{told.path}</a>' if "GET" in told.methods else name


def _calls(tokens: bool) -> str:
    key = "-H 'Authorization: Bearer TOKEN' " if tokens else ""
    lines = (
        f"curl {key}-F file=@series.zip {ADDRESS}/embed",
        f"curl {key}-F file=@series.zip {ADDRESS}/classify",
        f"curl {key}-F file=@series.zip '{ADDRESS}/classify?{POINT}=12.5,-30,88'",
        f"curl {key}{ADDRESS}/model",
    )
    return escape("\n".join(lines), quote=False)
