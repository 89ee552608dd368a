"""The OpenAPI document is valid, complete, and its examples are what its schemas say."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator

from serving.asking import FORM, POINT
from serving.metrics import REFUSED
from serving.openapi import OF_A_SCAN, document
from serving.routes import ROUTES
from serving.schemas import EXAMPLES, SCHEMAS

MODEL = {"name": "ctfoundry-wholebody", "digest": "0" * 64}


@pytest.fixture(params=[False, True], ids=["open", "tokens"])
def told(request: pytest.FixtureRequest) -> dict[str, Any]:
    return document(MODEL, request.param)


def test_it_is_valid(told: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(told).validate()


def test_every_route_and_method_is_in_it_and_no_other(told: dict[str, Any]) -> None:
    found = {path: sorted(operations) for path, operations in told["paths"].items()}
    assert found == {route.path: sorted(method.lower() for method in route.methods) for route in ROUTES}
    names = [operation["operationId"] for operations in told["paths"].values() for operation in operations.values()]
    assert len(names) == len(set(names))


def test_routes_that_take_scans_name_every_status_and_their_body(told: dict[str, Any]) -> None:
    secured = "securitySchemes" in told["components"]
    for path, more in (("/embed", ()), ("/classify", (404, 409))):
        operation = told["paths"][path]["post"]
        statuses = {200, *OF_A_SCAN, *more, *([401] if secured else [])}
        assert {int(status) for status in operation["responses"]} == statuses
        assert "multipart/form-data" in operation["requestBody"]["content"]
        for status in ("429", "503"):
            assert operation["responses"][status]["headers"]["Retry-After"]["required"]
    assert [p["name"] for p in told["paths"]["/classify"]["post"]["parameters"]] == [
        POINT,
        FORM,
        "study",
        "series",
        "store",
    ]
    assert set(REFUSED) <= {*OF_A_SCAN, 401, 404, 405, 409}


def test_a_token_is_asked_for_everywhere_but_at_the_probes() -> None:
    paths = document(MODEL, tokens=True)["paths"]
    asked = {path for path, operations in paths.items() for one in operations.values() if "security" in one}
    assert asked == {route.path for route in ROUTES if not (route.probe or route.public)}
    scans = {route.path for route in ROUTES if route.takes_scan}
    assert asked == scans | {"/model", "/about", "/metrics", "/docs.json"}
    assert "401" not in paths["/readyz"]["get"]["responses"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_what_the_schemas_say(name: str) -> None:
    schema = Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}})
    schema.validate(EXAMPLES[name])
    with pytest.raises(ValidationError):
        schema.validate({**EXAMPLES[name], "more": 1})
    for key in EXAMPLES[name]:
        with pytest.raises(ValidationError):
            schema.validate({k: v for k, v in EXAMPLES[name].items() if k != key})


def test_an_error_is_one_line() -> None:
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMAS["Error"]).validate({"error": "two\nlines"})
