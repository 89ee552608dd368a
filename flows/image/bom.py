"""Bills of materials as CycloneDX 1.6: of an image's software, and of the model in it.

The JSON is written here, since cyclonedx-python-lib knows no model cards, and is validated by it against the strict
schema. No clock and no random serial number is in it: equal content gives equal bytes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.bundle.config import BundleConfig
from components.bundle.manifest import MANIFEST_FILE, Manifest
from components.errors import UserError
from components.files import sha256_file, write_json
from flows.image.contents import Part

SPACE = uuid.UUID("6f7d2d0c-6a0e-5d43-9d5c-3a1f6f0f8a11")  # of our serial numbers, which follow from the content
FROM_LIBRARIES = ("torch", "monai", "safetensors", "numpy", "pydicom")  # what the model's answers rest on first


def software_bom(name: str, version: str, parts: Sequence[Part], release: Manifest) -> dict[str, Any]:
    """The software of an image.

    Args:
        name, version: of the image.
        parts: its packages.
        release: the code and model beside them.
    """
    image = {"type": "container", "bom-ref": f"image:{name}", "name": name, "version": version}
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{release.digest}",
        "name": release.name,
        "version": release.digest,
        "properties": [{"name": f"ctfoundry:input:{key}", "value": value} for key, value in _sorted(release.inputs)],
    }
    needs = [{"ref": part.purl, "dependsOn": list(part.requires)} for part in parts]
    needs.append({"ref": model["bom-ref"], "dependsOn": [part.purl for part in parts if part.kind == "python"]})
    needs.append({"ref": image["bom-ref"], "dependsOn": [model["bom-ref"], *(part.purl for part in parts)]})
    return _bom(image, [model, *map(component, parts)], needs)


def component(part: Part) -> dict[str, Any]:
    """A package as a component."""
    made: dict[str, Any] = {
        "type": "library", "bom-ref": part.purl, "name": part.name, "version": part.version, "purl": part.purl,
    }  # fmt: skip
    if part.spdx:
        made["licenses"] = [{"expression": part.licences[0]}]
    elif part.licences:
        made["licenses"] = [{"license": {"name": name}} for name in part.licences]
    if part.sha256:
        made["hashes"] = [_hash(part.sha256)]
    if part.bundled:
        made["components"] = [
            {"type": "library", "bom-ref": f"{part.purl}#{purl}", "name": name, "version": version, "purl": purl}
            for name, version, purl in part.bundled
        ]
    return made


def model_bom(
    manifest: Manifest,
    words: BundleConfig,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    licences: Iterable[Mapping[str, str]],
    libraries: Sequence[Part],
    manifest_sha256: str,
) -> dict[str, Any]:
    """The model: its card with every figure and interval of the evaluation, its files, its data, what it rests on.

    Args:
        manifest: of the release.
        words: the line's `bundle` block.
        parameters: the line's whole block.
        metrics: ``metrics.json`` of the release: ``tasks``, task to figure to ``value``, ``low``, ``high``.
        licences: rows of ``licences.csv``.
        libraries: Python packages of the image.
        manifest_sha256: of ``manifest.json``.
    """
    data = [_dataset(row) for row in licences]
    files = {**manifest.files, MANIFEST_FILE: manifest_sha256}
    model = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{manifest.digest}",
        "name": manifest.name,
        "version": manifest.digest,
        "description": words.description,
        "licenses": [{"license": {"name": words.licence}}],
        "hashes": [_hash(manifest.digest)],
        "components": [
            {"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": [_hash(sha256)]}
            for path, sha256 in _sorted(files)
        ],
        "modelCard": _card(words, parameters, metrics, [row["bom-ref"] for row in data]),
        "properties": [
            *({"name": "ctfoundry:reference", "value": text} for text in words.references),
            *({"name": f"ctfoundry:input:{key}", "value": value} for key, value in _sorted(manifest.inputs)),
        ],
    }
    below = [part for part in libraries if part.name.lower() in FROM_LIBRARIES]
    needs = [{"ref": model["bom-ref"], "dependsOn": [*(row["bom-ref"] for row in data), *(of.purl for of in below)]}]
    return _bom(model, [*data, *map(component, below)], needs)


def _card(
    words: BundleConfig, parameters: Mapping[str, Any], metrics: Mapping[str, Any], data: Sequence[str]
) -> dict[str, Any]:
    pretrain = parameters["pretrain"]
    return {
        "modelParameters": {
            "approach": {"type": "self-supervised"},
            "task": "embedding of CT scans",
            "architectureFamily": pretrain["encoder"]["kind"],
            "datasets": [{"ref": ref} for ref in data],
            "inputs": [{"format": "DICOM CT series"}, {"format": "NIfTI volume in HU"}],
            "outputs": [{"format": "JSON"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": performance(metrics)},
        "considerations": {
            "useCases": list(words.intended_use),
            "technicalLimitations": [*words.limits, *(f"Not for: {text}" for text in words.not_for)],
        },
    }


def performance(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure of every task with its interval, sorted."""
    rows = []
    for task, figures in sorted(metrics["tasks"].items()):
        for figure, numbers in sorted(figures.items()):
            row: dict[str, Any] = {"type": figure, "slice": task, "value": repr(numbers["value"])}
            if numbers.get("low") is not None and numbers.get("high") is not None:
                bounds = {"lowerBound": repr(numbers["low"]), "upperBound": repr(numbers["high"])}
                row["confidenceInterval"] = bounds
            rows.append(row)
    return rows


def _dataset(row: Mapping[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "data", "bom-ref": f"data:{row['collection']}:{row['licence']}", "name": row["collection"],
        "data": [{"type": "dataset", "name": row["collection"]}],
        "licenses": [{"license": {"name": row["licence"] or "not stated"}}],
    }  # fmt: skip
    if row.get("doi"):
        made["externalReferences"] = [{"type": "documentation", "url": f"https://doi.org/{row['doi']}"}]
    return made


def write_bom(path: Path, bom: Mapping[str, Any]) -> str:
    """Validate and write; returns the file's SHA-256. Raises UserError where it is not valid."""
    require_valid(json.dumps(bom), path.name)
    write_json(path, bom)
    return sha256_file(path)


def require_valid(text: str, name: str) -> None:
    """Raise UserError with the first thing in which a document is not CycloneDX 1.6, strictly read."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        told = " ".join(str(wrong).partition("Failed validating")[0].split())
        raise UserError(f"{name}: not valid CycloneDX 1.6: {told[:300]}")


def _bom(root: Mapping[str, Any], components: Sequence[Any], needs: Sequence[Any]) -> dict[str, Any]:
    body = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": list(components),
        "dependencies": sorted(needs, key=lambda need: str(need["ref"])),
    }
    serial = uuid.uuid5(SPACE, json.dumps(body, sort_keys=True))
    return {**body, "serialNumber": f"urn:uuid:{serial}"}


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}


def _sorted(entries: Mapping[str, str]) -> list[tuple[str, str]]:
    return sorted(entries.items())
