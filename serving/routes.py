"""All that the service answers: the page, the OpenAPI document, the guard and the figures go by this one list."""

from __future__ import annotations

from dataclasses import dataclass

READ = ("GET", "HEAD")


@dataclass(frozen=True)
class Told:
    """A route.

    Attributes:
        name: in figures and in the audit log.
        path: the whole of it.
        methods: allowed.
        done: of one that reads a patient's scan, the outcome where it answers; a line of the audit log tells of each
            request.
        probe: of an orchestrator, which has no token.
        public: a file of the page, which a browser asks for before anybody can send a token. It tells nothing of a
            release or a scan, and a browser may keep it.
        says: what it answers, for people.
    """

    name: str
    path: str
    methods: tuple[str, ...]
    says: str
    done: str = ""
    probe: bool = False
    public: bool = False

    @property
    def takes_scan(self) -> bool:
        """Whether it reads a patient's scan."""
        return bool(self.done)


ROUTES = (
    Told("embed", "/embed", ("POST",), "the embedding of one scan", "embedded"),
    Told("classify", "/classify", ("POST",), "what every head of the release answers for one scan", "classified"),
    Told("segment", "/segment", ("POST",), "the structures of one scan, as JSON, NIfTI or DICOM SEG", "segmented"),
    Told(
        "saliency", "/saliency", ("POST",), "what a head's answer for one scan rests on, as JSON or NIfTI", "explained"
    ),
    Told("locate", "/locate", ("POST",), "where in another scan a point of one scan is", "located"),
    Told("retrieve", "/retrieve", ("POST",), "the cases of the index that are most like one scan", "retrieved"),
    Told("preview", "/preview", ("POST",), "one scan on the model's grid, as NIfTI in HU", "previewed"),
    Told("model", "/model", READ, "name, line and digest of the model, its heads, and what it was made from"),
    Told("metrics", "/metrics", READ, "figures for Prometheus"),
    Told("docs", "/docs.json", READ, "this service as an OpenAPI 3.1 document"),
    Told("index", "/", READ, "a page for people: a scan, seen with the release's answers", public=True),
    Told("about", "/about", READ, "a page for people: the model, its heads and how to call it"),
    Told("style", "/style.css", READ, "the style sheet of these pages", public=True),
    Told("script", "/page.js", READ, "the script of the first page", public=True),
    Told("sending", "/sending.js", READ, "its part that packs and sends scans", public=True),
    Told("viewer", "/viewer.js", READ, "its part that draws scans", public=True),
    Told("answers", "/answers.js", READ, "its part that shows answers", public=True),
    Told("controls", "/controls.js", READ, "its part with what stands round the images", public=True),
    Told("niivue", "/niivue.umd.js", READ, "NiiVue, which draws volumes", public=True),
    Told("licences", "/LICENSES.txt", READ, "the licences of NiiVue and what it brings", public=True),
    Told("healthz", "/healthz", READ, "200 while the service lives", probe=True),
    Told("livez", "/livez", READ, "200 while the service lives", probe=True),
    Told(
        "readyz",
        "/readyz",
        READ,
        "200 while the service takes work, 503 from the moment on that it is to end",
        probe=True,
    ),
)
BY_PATH, BY_NAME = ({getattr(route, key): route for route in ROUTES} for key in ("path", "name"))
UNKNOWN = "other"  # every path that is none of these, as it is counted
