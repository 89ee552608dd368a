"""The service as an OpenAPI 3.1 document: BentoML's own knows nothing of routes that are an ASGI application's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.asking import FORM, FORMS, HEAD, HOW, POINT, PREVIEW
from serving.routes import ROUTES, Told
from serving.schemas import EXAMPLES, SCHEMAS, Schema, ref
from serving.static_files import FILES

OPENAPI = "3.1.0"
TOKEN = "token"
BINARY: Schema = {"contentMediaType": "application/octet-stream"}
SECONDS = {"schema": {"type": "integer", "minimum": 1}, "required": True,
           "description": "Seconds after which another try is sensible"}  # fmt: skip
REFUSALS = {
    400: "The body or the query is malformed",
    401: "The token is missing or not known",
    404: "The release has no such heads",
    405: "The route does not know this method",
    408: "The upload comes too slowly, or takes too long",
    409: "All heads see a point, and none was sent",
    413: "The file, or what it unpacks to, is too large",
    415: "The file is neither a zip nor a NIfTI volume",
    422: "The file is not one CT series that can be read, or its reader was ended",
    429: "Too many files are being sent or wait",
    500: "The service failed; the failure is in its log",
    503: "The service is ending, not ready, or has no room on its disk",
    504: "The request took longer than the service allows",
}
OF_A_SCAN = (400, 408, 413, 415, 422, 429, 500, 503, 504)
STATUSES = {
    "embed": OF_A_SCAN,
    "classify": (*OF_A_SCAN, 404, 409),
    "segment": (*OF_A_SCAN, 404),
    "preview": OF_A_SCAN,
    "model": (503,),
    "metrics": (503,),
    "readyz": (503,),
}
ANSWERS = {"embed": "Embedding", "classify": "Classification", "segment": "Segmentation", "model": "Model"}
MEDIA = {"metrics": "text/plain", "about": "text/html", "docs": "application/json"} | {
    name: file.media_type for name, file in FILES.items()
}
DESCRIPTION = """Send one CT series, as a zip of DICOM files or as NIfTI, and get what the model makes of it.

Every refusal is one clear line of JSON that names no patient. Files are worked on one after another: 429 and 503 say
in Retry-After when to come again. It is a tool of research and no medical device."""
NUMBER = r"[^,]+"
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "classify": [
        {
            "name": POINT,
            "in": "query",
            "required": False,
            "description": f"For heads that see a point: {HOW}",
            "schema": {"type": "string", "pattern": f"^{NUMBER},{NUMBER},{NUMBER}$"},
            "example": "12.5,-30,88",
        }
    ],
    "segment": [
        {
            "name": FORM,
            "in": "query",
            "required": False,
            "description": "json: the structures and their volumes; nifti: a label map on the scan's grid; dicom: "
            "a SEG in the scan's study, for a scan that was sent as DICOM",
            "schema": {"enum": list(FORMS), "default": "json"},
        },
        {
            "name": HEAD,
            "in": "query",
            "required": False,
            "description": "Which of the heads that segment, where the release has several",
            "schema": {"type": "string"},
        },
    ],
}


def document(model: Mapping[str, Any], tokens: bool) -> dict[str, Any]:
    """The document, as ``GET /docs.json`` gives it.

    Args:
        model: as ``GET /model`` gives it.
        tokens: whether a client must send one.
    """
    components: dict[str, Any] = {"schemas": SCHEMAS}
    if tokens:
        components["securitySchemes"] = {TOKEN: {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": OPENAPI,
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": str(model["name"]), "version": str(model["digest"]), "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": {told.path: _path(told, tokens) for told in ROUTES},
        "components": components,
    }


def _path(told: Told, tokens: bool) -> dict[str, Any]:
    return {method.lower(): _operation(told, tokens, method) for method in told.methods}


def _operation(told: Told, tokens: bool, method: str) -> dict[str, Any]:
    said = told.says[0].upper() + told.says[1:]
    name = told.name if method == told.methods[0] else f"{told.name}_{method.lower()}"
    operation: dict[str, Any] = {"operationId": name, "summary": said, "responses": _responses(told, tokens, method)}
    if told.takes_scan:
        operation["requestBody"] = _body()
    if told.name in PARAMETERS:
        operation["parameters"] = PARAMETERS[told.name]
    if tokens and not (told.probe or told.public):
        operation["security"] = [{TOKEN: []}]
    return operation


def _responses(told: Told, tokens: bool, method: str) -> dict[str, Any]:
    """By status. A HEAD request is answered without content."""
    answers = {"200": {"description": told.says, "content": _content(told)}}
    needed = (401,) if tokens and not (told.probe or told.public) else ()
    for status in sorted({*STATUSES.get(told.name, ()), *needed, 500}):
        answers[str(status)] = _refusal(status)
    if told.public:
        answers["304"] = {"description": "It is what the client has: If-None-Match names its ETag"}
    if method == "HEAD":
        return {status: {key: value for key, value in answer.items() if key != "content"}
                for status, answer in answers.items()}  # fmt: skip
    return answers


def _content(told: Told) -> dict[str, Any]:
    if told.name in ANSWERS:
        name = ANSWERS[told.name]
        files = {media: {"schema": BINARY} for media, file in FORMS.values() if file and told.name == "segment"}
        return {"application/json": {"schema": ref(name), "example": EXAMPLES[name]}} | files
    if told.name == "preview":
        return {PREVIEW[0]: {"schema": BINARY}}
    kind = MEDIA.get(told.name, "text/plain")
    return {kind: {"schema": {"type": "object" if kind == "application/json" else "string"}}}


def _refusal(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": REFUSALS[status],
        "content": {"application/json": {"schema": ref("Error"), "example": EXAMPLES["Error"]}},
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": SECONDS}
    if status == 401:
        answer["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}}
    return answer


def _body() -> dict[str, Any]:
    """One file; its declared type does not count."""
    form = {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": BINARY,
            "description": "exactly one file field, of any name"}  # fmt: skip
    kinds = ("application/zip", "application/gzip", "application/octet-stream")
    content = {kind: {"schema": BINARY} for kind in kinds} | {"multipart/form-data": {"schema": form}}
    what = "One DICOM series as a zip, or a NIfTI volume (.nii, .nii.gz). The declared type does not count."
    return {"required": True, "description": what, "content": content}
