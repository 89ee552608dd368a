"""A whole image: built by buildah, started by runc as in production, tagged since it answers as the release does here.

Needs root, apt's and pip's indices, and minutes.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from released import ROOT, write_release, write_segmenter
from team_keys import private_pem, public_pem

from components.bundle.inputs import code_hash, parameters_hash
from components.bundle.manifest import write_manifest
from components.bundle.signing import sign_release
from components.errors import UserError
from components.files import read_json, sha256_file, sha256_tree, write_json
from components.settings import decisive, read_yaml
from flows.image.build import Builder, read_image
from flows.image.make import IMAGES, PLACE, Made, Wanted, make_image
from flows.image.selftest import self_test
from serving.build import bento_path

MISSING = [name for name in ("buildah", "mmdebstrap", "runc") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; apt-get install them"),
    pytest.mark.skipif(os.geteuid() != 0, reason="an image is built by root"),
]
PROJECT = ("components", "serving", "infra")


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, key: ec.EllipticCurvePrivateKey) -> Iterator[Path]:
    """A checkout with a small release that embeds and segments, as its working folder; the team's key is at hand."""
    root = tmp_path_factory.mktemp("project")
    for name in PROJECT:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    folder = root / "releases" / "wholebody"
    write_release(folder)
    write_segmenter(folder, "organs_segmented", ("liver", "spleen"))
    (folder / "MODEL_CARD.md").write_text("# A model card\n")
    (folder / "licences.csv").write_text("collection,licence,doi\nctfoundry-phantom,Apache-2.0,\n")
    figures = {"linear_auc": {"value": 0.9, "low": 0.8, "high": 0.95}}
    write_json(folder / "metrics.json", {"tasks": {"organs": figures}})
    inputs = {
        "code": code_hash(root),
        "lock": sha256_tree(root / "infra" / "pins"),
        "parameters": parameters_hash(decisive(read_yaml()["wholebody"])),
    }
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("BENTOML_HOME", str(root / "bentoml"))
        patch.setenv("CTFOUNDRY_SIGNING_KEY", private_pem(key).decode())
        yield root


@pytest.fixture(scope="module")
def made(project: Path) -> Made:
    return make_image(Wanted("wholebody"))


def _bento(made: Made) -> Path:
    bento = bento_path(made.tag)
    assert bento is not None
    return bento


def _changed(content: bytes) -> bytes:
    """Weights with one byte changed: a number of a convolution is doubled or halved."""
    length = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + length])
    name = next(name for name in sorted(tensors) if "conv" in name and tensors[name]["dtype"] == "F32")
    changed = bytearray(content)
    changed[8 + length + tensors[name]["data_offsets"][0] + 2] ^= 0x80  # the exponent's lowest bit
    return bytes(changed)


def test_it_is_small_tagged_described_and_signed(made: Made, project: Path, tmp_path: Path) -> None:
    folder = project / IMAGES / "wholebody"
    image = read_image(folder / "oci")
    assert image.digest == made.digest
    assert image.compressed < 450e6
    assert image.config["config"]["User"] == "10001:10001"
    assert {"/embed", "/segment?head=organs_segmented&form=nifti", "ctfoundry run"} <= set(made.tested.asked)
    facts = read_json(folder / "image.json")
    assert facts["digest"] == made.digest
    assert facts["files"]["sbom.cdx.json"] == sha256_file(folder / "sbom.cdx.json")
    named = {component["name"] for component in read_json(folder / "sbom.cdx.json")["components"]}
    assert {"torch", "bentoml", "libc6", "tini"} <= named
    assert not {"pyarrow", "prefect", "dvc", "apt", "perl", "gcc"} & named


def test_what_is_signed_is_verified_by_openssl(
    made: Made, project: Path, tmp_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    folder = project / IMAGES / "wholebody"
    (tmp_path / "team.pub").write_bytes(public_pem(key))
    (tmp_path / "signature").write_bytes(base64.b64decode((folder / "image.json.sig").read_text()))
    command = ["openssl", "dgst", "-sha256", "-verify", "team.pub", "-signature", "signature"]
    done = subprocess.run([*command, folder / "image.json"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0
    (tmp_path / "other.json").write_text((folder / "image.json").read_text().replace("sha256:", "sha256:0", 1))
    assert subprocess.run([*command, "other.json"], cwd=tmp_path, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("hidden", [False, True])
def test_a_byte_of_the_weights_that_is_not_the_releases_is_found(
    made: Made, project: Path, tmp_path: Path, key: ec.EllipticCurvePrivateKey, hidden: bool
) -> None:
    """``hidden``: with heads, a manifest and a signature that fit the changed weights."""
    (tmp_path / "team.pub").write_bytes(public_pem(key))
    tmp_path.chmod(0o755)  # for the container's user
    image, bento = read_image(project / IMAGES / "wholebody" / "oci"), _bento(made)
    with Builder(PLACE).mounted(f"localhost/{made.tag}") as root:
        sources = root / "opt" / "ctfoundry" / "src"
        weights = sources / "bundle" / "encoder.safetensors"
        before = sha256_file(weights)
        weights.write_bytes(_changed(weights.read_bytes()))
        if hidden:
            for head in sources.glob("bundle/heads/*/head.json"):  # they name the encoder that they are of
                head.write_text(head.read_text().replace(before, sha256_file(weights)))
            manifest = json.loads((sources / "bundle" / "manifest.json").read_text())
            write_manifest(sources / "bundle", manifest["line"], manifest["name"], manifest["inputs"])
            shutil.move(sign_release(sources / "bundle", key), sources / "signature" / "bundle.sig")
        said = "/embed: embedding" if hidden else "encoder.safetensors: "
        with pytest.raises(UserError, match=said):
            self_test(root, image.config, bento, PLACE / "scan.zip", tmp_path)


def test_an_image_that_fails_leaves_the_one_before(made: Made, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise UserError("not as here")

    monkeypatch.setattr("flows.image.make.self_test", fails)
    with pytest.raises(UserError, match=r"^not as here$"):
        make_image(Wanted("wholebody"))
    assert read_image(project / IMAGES / "wholebody" / "oci").digest == made.digest
    assert [path.name for path in (project / IMAGES).iterdir()] == ["wholebody"]


def test_equal_inputs_give_an_equal_digest(made: Made, project: Path) -> None:
    """Debian's part is kept: its bytes are those of the mirror on that day."""
    shutil.rmtree(PLACE / "store")
    for folder in PLACE.glob("packages-*"):
        shutil.rmtree(folder)
    assert make_image(Wanted("wholebody")).digest == made.digest
