"""Bills of materials of what is installed here: valid CycloneDX 1.6, complete, and the same each time."""

from __future__ import annotations

import json
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from components.bundle.config import BundleConfig
from components.bundle.manifest import Manifest
from components.errors import UserError
from components.settings import load_stage, read_yaml
from flows.image.bom import model_bom, require_valid, software_bom, write_bom
from flows.image.contents import Part, python_parts

MANIFEST = Manifest(
    2, "wholebody", "ctfoundry-wholebody", {"encoder.safetensors": "a" * 64}, {"code": "b" * 64}, "c" * 64
)
DEBIAN = Part("debian", "tini", "0.19.0-1", "pkg:deb/debian/tini@0.19.0-1?arch=amd64&distro=bookworm", ("MIT",))
METRICS = {
    "tasks": {"organs": {"linear_auc": {"value": 0.91, "low": 0.85, "high": 0.95}}, "clusters": {"k": {"value": 3}}}
}


@pytest.fixture(scope="module")
def libraries() -> list[Part]:
    wheels = {"torch": {"version": metadata.version("torch"), "sha256": "d" * 64}}
    return python_parts(Path(sysconfig.get_path("purelib")), wheels)


def _model(project: Path, libraries: list[Part]) -> dict[str, Any]:
    words = load_stage(BundleConfig, "wholebody", "bundle")
    data = [{"collection": "lidc_idri", "licence": "CC BY 3.0", "doi": "10.7937/k9", "citation": ""}]
    return model_bom(MANIFEST, words, read_yaml()["wholebody"], METRICS, data, libraries, "e" * 64)


def _references(bom: dict[str, Any]) -> set[str]:
    waiting, found = [bom["metadata"]["component"], *bom["components"]], set()
    while waiting:
        component = waiting.pop()
        waiting += component.get("components", [])
        assert component["bom-ref"] not in found
        found.add(component["bom-ref"])
    return found


def test_the_software_is_listed_with_versions_hashes_licences_and_what_needs_what(
    libraries: list[Part], tmp_path: Path
) -> None:
    bom = software_bom("ctfoundry-wholebody", "sha256:ab", [*libraries, DEBIAN], MANIFEST)
    write_bom(tmp_path / "sbom.cdx.json", bom)
    again = software_bom("ctfoundry-wholebody", "sha256:ab", [*libraries, DEBIAN], MANIFEST)
    assert json.dumps(again, sort_keys=True) == json.dumps(bom, sort_keys=True)
    found = {component["name"]: component for component in bom["components"]}
    assert found["torch"]["version"] == metadata.version("torch")
    assert found["torch"]["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    assert found["tini"]["licenses"] == [{"license": {"name": "MIT"}}]
    needs = {need["ref"]: need["dependsOn"] for need in bom["dependencies"]}
    assert found["numpy"]["bom-ref"] in needs[found["scipy"]["bom-ref"]]
    assert set(needs) | {ref for refs in needs.values() for ref in refs} <= _references(bom)


def test_a_wheels_own_list_of_what_it_bundles_is_taken_over(libraries: list[Part]) -> None:
    (part,) = (part for part in libraries if part.name == "cryptography")
    assert "openssl" in {name for name, _, _ in part.bundled}


def test_the_model_has_its_figures_with_intervals_its_files_and_its_data(
    project: Path, libraries: list[Part], tmp_path: Path
) -> None:
    bom = _model(project, libraries)
    write_bom(tmp_path / "model.cdx.json", bom)
    assert json.dumps(_model(project, libraries), sort_keys=True) == json.dumps(bom, sort_keys=True)
    model = bom["metadata"]["component"]
    figures = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert figures == [
        {"type": "k", "slice": "clusters", "value": "3"},
        {
            "type": "linear_auc",
            "slice": "organs",
            "value": "0.91",
            "confidenceInterval": {"lowerBound": "0.85", "upperBound": "0.95"},
        },
    ]
    files = {file["name"]: file["hashes"][0]["content"] for file in model["components"]}
    assert files == {"encoder.safetensors": "a" * 64, "manifest.json": "e" * 64}
    (needs,) = bom["dependencies"]
    assert needs["ref"] == model["bom-ref"]
    assert {"data:lidc_idri:CC BY 3.0", f"pkg:pypi/torch@{metadata.version('torch').replace('+', '%2B')}"} <= set(
        needs["dependsOn"]
    )
    assert set(needs["dependsOn"]) <= _references(bom)


def test_what_is_not_cyclonedx_is_refused_and_not_written(project: Path, libraries: list[Part], tmp_path: Path) -> None:
    bom = _model(project, libraries)
    bom["metadata"]["component"]["modelCard"]["modelParameters"]["approach"]["type"] = "self-taught"
    with pytest.raises(UserError, match=r"^model\.cdx\.json: not valid CycloneDX 1\.6: 'self-taught' is not one of"):
        write_bom(tmp_path / "model.cdx.json", bom)
    assert list(tmp_path.iterdir()) == []
    bom = software_bom("a", "b", [DEBIAN], MANIFEST)
    bom["components"][0]["unheard"] = 1
    with pytest.raises(UserError, match="unheard"):
        require_valid(json.dumps(bom), "sbom")
