"""The service as an OpenAPI 3.1 document: BentoML's own knows nothing of routes that are an ASGI application's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.asking import (
    BLOCKS,
    BLOCKS_AN_AXIS,
    CLASS,
    FIELDS,
    FORM,
    FORMS,
    FORMS_OF_A_MAP,
    FORMS_OF_LABELS,
    HEAD,
    HOW,
    MOST_BLOCKS,
    MOST_NEAREST,
    NEAREST,
    NEAREST_CASES,
    POINT,
    SCAN,
    WAY,
    WAYS,
)
from serving.pacs import NO, SERIES, STORE, STUDY, YES
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
    404: "The release, or what is served beside it, has not what this route needs; or the PACS has no such series",
    405: "The route does not know this method",
    408: "The upload comes too slowly, or takes too long",
    409: "A point is needed, and none was sent",
    413: "The file, or what it unpacks to, is too large",
    415: "The file is neither an archive nor a NIfTI volume",
    422: "The file is not one CT series that can be read, or its reader was ended",
    429: "Too many files are being sent or wait",
    500: "The service failed; the failure is in its log",
    502: "The PACS cannot be reached, or refuses",
    503: "The service is ending, not ready, or has no room on its disk",
    504: "The request took longer than the service allows",
}
OF_A_SCAN = (400, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504)
STATUSES = {
    "embed": OF_A_SCAN,
    "classify": (*OF_A_SCAN, 409),
    "segment": OF_A_SCAN,
    "saliency": (*OF_A_SCAN, 409),
    "locate": (*OF_A_SCAN, 409),
    "retrieve": OF_A_SCAN,
    "preview": OF_A_SCAN,
    "model": (503,),
    "metrics": (503,),
    "readyz": (503,),
}
ANSWERS = {
    "embed": "Embedding", "classify": "Classification", "segment": "Segmentation", "saliency": "Saliency",
    "locate": "Location", "retrieve": "Retrieval", "model": "Model",
}  # fmt: skip
MEDIA = {"metrics": "text/plain", "about": "text/html", "docs": "application/json"} | {
    name: file.media_type for name, file in FILES.items()
}
DESCRIPTION = """Send one CT series, as DICOM or as NIfTI, and get what the model makes of it.

Every refusal is one clear line of JSON that names no patient. Files are worked on one after another: 429 and 503 say
in Retry-After when to come again. It is a tool of research and no medical device."""
NUMBER = r"[^,]+"


def _parameter(
    name: str, says: str, schema: Schema, required: bool = False, example: str | None = None
) -> dict[str, Any]:
    told = {"name": name, "in": "query", "required": required, "description": says, "schema": schema}
    return told if example is None else told | {"example": example}


def _whole(most: int, default: int) -> Schema:
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}


_POINT: Schema = {"type": "string", "pattern": f"^{NUMBER},{NUMBER},{NUMBER}$"}
_AT = "12.5,-30,88"
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "classify": [
        _parameter(POINT, f"For heads that see a point: {HOW}", _POINT, example=_AT),
        _parameter(
            FORM,
            "dicom: a structured report (SR TID 1500) in the scan's study, for a scan that was sent as DICOM",
            {"enum": ["json", "dicom"], "default": "json"},
        ),
    ],
    "segment": [
        _parameter(
            FORM,
            "json: the structures and their volumes; nifti: a label map on the scan's grid; dicom: a SEG in the scan's "
            "study, for a scan that was sent as DICOM",
            {"enum": list(FORMS_OF_LABELS), "default": "json"},
        ),
        _parameter(HEAD, "Which of the heads that segment, where the release has several", {"type": "string"}),
    ],
    "saliency": [
        _parameter(HEAD, "Which of the heads that classify, where the release has several", {"type": "string"}),
        _parameter(POINT, f"For a head that sees a point: {HOW}", _POINT, example=_AT),
        _parameter(
            CLASS,
            "Whose log odds are explained; else the positive one, or the likeliest of several",
            {"type": "string"},
        ),
        _parameter(
            WAY,
            "occlusion: by how much they fall where a block is replaced by the mean of what is seen; gradients: what "
            "each voxel adds to them (integrated gradients)",
            {"enum": list(WAYS), "default": WAYS[0]},
        ),
        _parameter(BLOCKS, "Along each axis, for occlusion", _whole(MOST_BLOCKS, BLOCKS_AN_AXIS)),
        _parameter(
            FORM,
            "json: the highest and the lowest block; nifti: the map, float32, on the scan's grid; dicom: the same as a "
            "Parametric Map in the scan's study; capture: a picture of the slice with the highest value, as a "
            "Secondary Capture there",
            {"enum": list(FORMS_OF_A_MAP), "default": "json"},
        ),
    ],
    "locate": [_parameter(POINT, f"Of the scan in the field {SCAN!r}: {HOW}", _POINT, required=True, example=_AT)],
    "retrieve": [_parameter(NEAREST, "How many cases, at most", _whole(MOST_NEAREST, NEAREST_CASES))],
}


_UID: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)*$", "maxLength": 64}
_STORE = _parameter(
    STORE,
    "Store the result in the PACS, in the scan's study, and answer with what form=json would and where it is stored",
    {"enum": [NO, YES], "default": NO},
)


def _parameters(told: Told) -> list[dict[str, Any]]:
    """Of a route, with those that name its scans."""
    if not told.takes_scan:
        return []
    found = list(PARAMETERS.get(told.name, []))
    for field in FIELDS.get(told.name, (SCAN,)):
        prefix, of = ("", "the scan") if field == SCAN else (f"{field}_", f"the scan {field!r}")
        for name in (STUDY, SERIES):
            said = f"UID of {of} in the service's PACS, in place of the scan itself; both or none"
            found.append(_parameter(prefix + name, said, _UID, example="1.2.840.113619.2.1"))
    dicom = any(each["name"] == FORM and "dicom" in each["schema"]["enum"] for each in found)
    return [*found, _STORE] if dicom else found


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
        operation["requestBody"] = _body(FIELDS.get(told.name, ()))
    if parameters := _parameters(told):
        operation["parameters"] = parameters
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
        of_route: list[str] = next(
            (each["schema"]["enum"] for each in PARAMETERS.get(told.name, []) if each["name"] == FORM), []
        )
        files = {FORMS[form][0]: {"schema": BINARY} for form in of_route if FORMS[form][1]}
        return {"application/json": {"schema": ref(name), "example": EXAMPLES[name]}} | files
    if told.name == "preview":
        return {FORMS["nifti"][0]: {"schema": BINARY}}
    kind = MEDIA.get(told.name, "text/plain")
    return {kind: {"schema": {"type": "object" if kind == "application/json" else "string"}}}


def _refusal(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": REFUSALS[status],
        "content": {"application/json": {"schema": ref("Error"), "example": EXAMPLES["Error"]}},
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": SECONDS}
    if status == 422:
        where = "Where the reader was ended, for its memory, its time or by a crash: when another try is sensible"
        answer["headers"] = {"Retry-After": SECONDS | {"required": False, "description": where}}
    if status == 401:
        answer["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}}
    return answer


def _body(fields: Sequence[str]) -> dict[str, Any]:
    """One scan, or one in each of several fields; the declared type of a file does not count."""
    what = (
        "One CT series as a zip, a tar (.tar, .tar.gz) or several DICOM files of a form, or a NIfTI volume (.nii, "
        ".nii.gz). The declared type does not count."
    )
    files: Schema = {"type": "array", "items": BINARY, "minItems": 1}
    if fields:
        form = {"type": "object", "additionalProperties": False,
                "properties": {field: {"oneOf": [BINARY, files], "description": what} for field in fields}}  # fmt: skip
        return {"required": False, "content": {"multipart/form-data": {"schema": form}}}
    form = {"type": "object", "minProperties": 1, "additionalProperties": {"oneOf": [BINARY, files]},
            "description": "file fields of any names"}  # fmt: skip
    kinds = ("application/zip", "application/gzip", "application/x-tar", "application/octet-stream")
    content = {kind: {"schema": BINARY} for kind in kinds} | {"multipart/form-data": {"schema": form}}
    return {"required": False, "description": f"{what} None where the scan is named.", "content": content}
