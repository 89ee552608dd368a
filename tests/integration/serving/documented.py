"""Every real answer of the service is one that its OpenAPI document describes."""

from __future__ import annotations

from typing import Any

import httpx
from jsonschema import Draft202012Validator

from serving.openapi import document
from serving.routes import BY_PATH

MODEL = {"name": "ctfoundry-wholebody", "digest": "0" * 64}
DOCUMENT = document(MODEL, tokens=True)
ELSEWHERE = {404, 405}  # of no operation: an unknown path, a method that a path does not know


def require_documented(response: httpx.Response) -> None:
    """Raise AssertionError where the document does not describe an answer: status, type, content or headers."""
    path, method, status = response.request.url.path, response.request.method, response.status_code
    told = DOCUMENT["paths"].get(path, {}).get(method.lower())
    if told is None:
        assert status in ELSEWHERE | {401}, f"{method} {path}: {status}"
        assert status != 404 or path not in BY_PATH
        if method == "HEAD":
            assert response.content == b""
            return
        conforms(response.json(), {"$ref": "#/components/schemas/Error"})
        return
    assert str(status) in told["responses"], f"{method} {path}: {status} {response.text[:200]}"
    described = told["responses"][str(status)]
    for name, header in described.get("headers", {}).items():
        if not header["required"] and name not in response.headers:
            continue
        assert name in response.headers, f"{method} {path}: {status} without {name}"
        value: Any = response.headers[name]
        conforms(int(value) if header["schema"]["type"] == "integer" else value, header["schema"])
    if method == "HEAD":
        assert "content" not in described
        assert response.content == b""
        return
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in described["content"], f"{method} {path}: {status} as {kind}"
    content = response.json() if kind == "application/json" else response.text
    conforms(content, described["content"][kind]["schema"])


def conforms(content: Any, schema: dict[str, Any]) -> None:
    """Raises ValidationError where it does not."""
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(content)
