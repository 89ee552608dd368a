"""Make Data Docs a site that needs no network: Great Expectations' pages load their looks from public servers."""

from __future__ import annotations

import re
from pathlib import Path

# Pages of a hospital's data must not call out: every script, style and picture from elsewhere goes.
FROM_ELSEWHERE = re.compile(
    r"<script[^>]*src=\"(?:https?:)?//[^>]*>\s*</script>|<link[^>]*href=\"(?:https?:)?//[^>]*>"
    r"|<img[^>]*src=\"(?:https?:)?//[^>]*>|<p>Stay current on everything GX.*?</p>",
    re.DOTALL,
)
STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 76rem; padding: 0 1rem; color: #1c2330; }
h1, h2, h3, h4, h5, h6 { font-size: 1.1rem; margin: 1.4rem 0 .4rem; }
table { border-collapse: collapse; margin: .4rem 0 1rem; font-size: .9rem; }
th, td { border-bottom: 1px solid #dfe3ea; padding: .3rem .7rem; text-align: left; vertical-align: top; }
ol.breadcrumb { list-style: none; display: flex; gap: .6rem; padding: 0; color: #5a6577; }
a { color: #1f5fc4; }
.fa-times, .fa-exclamation-triangle, .text-danger { color: #b3261e; }
.fa-times::before { content: "failed"; } .fa-exclamation-triangle::before { content: "error"; }
.fa-check-circle { color: #1a7f37; } .fa-check-circle::before { content: "met"; }
.modal, .cooltip, .sticky-top .btn, footer { display: none; }
.alert-secondary, .alert { border-left: 4px solid #8b97a8; padding: .4rem .8rem; background: #f4f6f9; }
</style></head>"""


def make_offline(site: Path) -> None:
    """Rewrite every page below ``site``: nothing is loaded from elsewhere, and a style of our own is built in."""
    for page in sorted(site.rglob("*.html")):
        text = FROM_ELSEWHERE.sub("", page.read_text(encoding="utf-8"))
        page.write_text(text.replace("</head>", STYLE, 1), encoding="utf-8")
