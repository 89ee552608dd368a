"""From a release to a tested image and all that lies beside it: ``images/<line>``, whole or not at all."""

from __future__ import annotations

import base64
import csv
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from components.bundle.config import BundleConfig
from components.bundle.inputs import parameters_hash
from components.bundle.manifest import MANIFEST_FILE, Manifest, read_manifest
from components.bundle.signature import IN_BENTO, verify_release
from components.bundle.signing import signing_key
from components.bundle.trust import KEYS_VARIABLE, trusted_keys
from components.errors import UserError
from components.files import read_json, replacing, sha256_file, write_text
from components.settings import decisive, load_stage, read_yaml
from flows.image.bom import model_bom, software_bom, write_bom
from flows.image.build import Builder, Image, tag_image
from flows.image.contents import debian_parts, licence_table, python_parts
from flows.image.parts import Packages, debian, packages
from flows.image.selftest import Tested, pinned_scan, self_test
from flows.run import build_bento
from serving.build import BUNDLE, REQUIREMENTS, bento_path

PLACE, IMAGES = Path(".ctfoundry/image"), Path("images")
LAYOUT, FACTS, SIGNATURE = "oci", "image.json", "image.json.sig"
SBOM, MODEL_BOM, LICENCES = "sbom.cdx.json", "model.cdx.json", "licences.csv"
OCI, OURS = "org.opencontainers.image", "io.ctfoundry"


@dataclass(frozen=True)
class Wanted:
    """What image is wanted: as the options of the command."""

    line: str
    variant: str = "cpu"
    index: str | None = None
    renew: bool = False


@dataclass(frozen=True)
class Made:
    """An image that passed its test.

    Attributes:
        tag: that of the Bento.
        digest: of the manifest.
        layers: compressed bytes of each, from the bottom.
        tested: what the self-test asked.
        signed: whether the team's key was at hand.
        seconds: what each step took.
    """

    tag: str
    digest: str
    layers: tuple[int, ...]
    tested: Tested
    signed: bool
    seconds: dict[str, float]

    @property
    def megabytes(self) -> float:
        """Compressed, all layers."""
        return sum(self.layers) / 1e6


@dataclass(frozen=True)
class _Release:
    """A release, its Bento, and what ``params.yaml`` says of it."""

    manifest: Manifest
    folder: Path
    bento: Path
    words: BundleConfig
    parameters: dict[str, Any]


def make_image(wanted: Wanted) -> Made:
    """Build the image of a line's present release, test it, tag it, and describe it.

    Raises:
        UserError: there is no such release, or it is not of this code and these parameters; a tool is missing or
            fails; the image does not answer as the release does here. Then an earlier image stays as it was.
    """
    clock = _Clock()
    key = signing_key()
    tag = build_bento(wanted.line)
    bento = bento_path(tag)
    assert bento is not None
    release = _read_release(wanted.line, bento)
    PLACE.mkdir(parents=True, exist_ok=True)
    builder = Builder(PLACE)
    base = debian(PLACE, wanted.renew)
    clock.lap("base")
    packed = packages(PLACE, Path(REQUIREMENTS), wanted.variant, wanted.index)
    clock.lap("packages")
    name = builder.build(base, packed, bento, tag, labels(release.words, release.manifest, bento, wanted.variant))
    clock.lap("layers")
    with replacing(IMAGES / wanted.line) as made:
        made.mkdir()
        image = builder.push(name, made / LAYOUT)
        clock.lap("layout")
        tested = _test(builder, name, image, release, key)
        clock.lap("self-test")
        tag_image(made / LAYOUT, tag)
        _describe(made, tag, image, release, base, packed)
        text = json.dumps(_facts(made, tag, image, tested), indent=2, sort_keys=True) + "\n"
        write_text(made / FACTS, text)
        if key is not None:
            signature = key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
            write_text(made / SIGNATURE, base64.b64encode(signature).decode() + "\n")
    clock.lap("rest")
    sizes = tuple(size for _, size in image.layers)
    return Made(tag, image.digest, sizes, tested, key is not None, clock.seconds)


def labels(words: BundleConfig, manifest: Manifest, bento: Path, variant: str) -> dict[str, str]:
    """OCI's annotations, and ours."""
    said = yaml.safe_load((bento / "bento.yaml").read_text(encoding="utf-8"))["labels"]
    return {
        f"{OCI}.title": words.name,
        f"{OCI}.description": words.title,
        f"{OCI}.version": manifest.digest[:16],
        f"{OCI}.licenses": words.licence,
        **({f"{OCI}.revision": said["git_commit"]} if "git_commit" in said else {}),
        f"{OURS}.line": manifest.line,
        f"{OURS}.digest": manifest.digest,
        f"{OURS}.code": manifest.inputs["code"],
        f"{OURS}.variant": variant,
    }


def _read_release(line: str, bento: Path) -> _Release:
    folder = Path("releases") / line
    manifest, parameters = read_manifest(folder), decisive(read_yaml()[line])
    if parameters_hash(parameters) != manifest.inputs["parameters"]:
        raise UserError(f"bundle {line}: parameters have changed since it was made; make the release again")
    return _Release(manifest, folder, bento, load_stage(BundleConfig, line, "bundle"), parameters)


def _test(
    builder: Builder, name: str, image: Image, release: _Release, key: ec.EllipticCurvePrivateKey | None
) -> Tested:
    if not builder.same_layers(name, image):
        raise UserError(f"image {name}: another build has changed it meanwhile; run this again")
    scan = PLACE / "scan.zip"
    pinned_scan(release.parameters["cohort"]["phantom"]["anatomy"], scan)
    with _keys_of(release.bento, key) as keys, builder.mounted(name) as root:
        return self_test(root, image.config, release.bento, scan, keys)


@contextmanager
def _keys_of(bento: Path, key: ec.EllipticCurvePrivateKey | None) -> Iterator[Path | None]:
    """A folder of the keys that are trusted here, with the team's own; None where the release is not signed by one."""
    with tempfile.TemporaryDirectory(prefix="ctfoundry-keys-") as name:
        found = [] if key is None else [key.public_key()]
        if os.environ.get(KEYS_VARIABLE, "").strip():
            found += [trusted.key for trusted in trusted_keys()]
        if not found or not (bento / "src" / IN_BENTO).is_dir():
            yield None
            return
        Path(name).chmod(0o755)
        for number, public in enumerate(found):
            pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            (Path(name) / f"{number}.pub").write_bytes(pem)
        verify_release(bento / "src" / BUNDLE, trusted_keys(Path(name)))
        yield Path(name)


def _describe(made: Path, tag: str, image: Image, release: _Release, base: Path, packed: Packages) -> None:
    """Write the bills of materials and the table of licences."""
    libraries = python_parts(packed.site, read_json(packed.wheels))
    parts = [*libraries, *debian_parts(base)]
    write_bom(made / SBOM, software_bom(tag.partition(":")[0], image.digest, parts, release.manifest))
    with (release.folder / "licences.csv").open(encoding="utf-8", newline="") as table:
        data = list(csv.DictReader(table))
    bom = model_bom(
        release.manifest,
        release.words,
        release.parameters,
        read_json(release.folder / "metrics.json"),
        data,
        libraries,
        sha256_file(release.folder / MANIFEST_FILE),
    )
    write_bom(made / MODEL_BOM, bom)
    write_text(made / LICENCES, licence_table(parts))


def _facts(made: Path, tag: str, image: Image, tested: Tested) -> dict[str, Any]:
    """What is signed: the image's digest, and what lies beside it. No clock and no machine is in it."""
    return {
        "format": 1,
        "tag": tag,
        "digest": image.digest,
        "compressed_bytes": image.compressed,
        "layers": [{"digest": digest, "bytes": size} for digest, size in image.layers],
        "labels": image.config["config"]["Labels"],
        "self_test": {"scan_sha256": tested.scan, "equal": list(tested.asked)},
        "files": {name: sha256_file(made / name) for name in (SBOM, MODEL_BOM, LICENCES)},
    }


class _Clock:
    """Seconds of each step, for people."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Name what has just been done."""
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now
