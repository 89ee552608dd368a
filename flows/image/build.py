"""The layers as an OCI image, by buildah, and what its layout says of itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.bundle.inputs import SOURCE_PACKAGES
from components.bundle.signature import IN_BENTO
from components.files import read_json
from flows.image.parts import EPOCH, Packages, compile_all, run, settle, tool
from serving.build import BUNDLE

CONTAINERFILE = Path("infra/image/Containerfile")
SOURCES = "opt/ctfoundry/src"
COMMAND = '#!/bin/sh\nexec /usr/bin/python3 -m serving "$@"\n'  # /usr/local/bin/ctfoundry
REF = "org.opencontainers.image.ref.name"
SECOND = 10**9  # Docker counts in nanoseconds
# OCI reserves it, Docker honours it, buildah leaves it out; orchestrators probe /livez and /readyz.
HEALTHCHECK = {
    "Test": ["CMD", "ctfoundry", "healthy"],
    "Interval": 30 * SECOND,
    "Timeout": 10 * SECOND,
    "StartPeriod": 120 * SECOND,
    "Retries": 3,
}


@dataclass(frozen=True)
class Image:
    """An OCI layout with one image.

    Attributes:
        layout: its folder.
        digest: of the manifest, ``sha256:...``: the image's identity.
        config: OCI's image configuration.
        layers: digest and bytes of each, compressed, from the bottom.
    """

    layout: Path
    digest: str
    config: dict[str, Any]
    layers: tuple[tuple[str, int], ...]

    @property
    def compressed(self) -> int:
        """Bytes of all layers as they are transferred."""
        return sum(size for _, size in self.layers)


class Builder:
    """buildah with a store of its own, ``store`` in ``place``, where it finds layers of earlier images again."""

    def __init__(self, place: Path) -> None:
        self._place = place.resolve()
        store = self._place / "store"
        self._command: list[str | Path] = [tool("buildah"), "--root", store, "--runroot", store / "run"]
        self._command += ["--storage-driver", "overlay"]

    def build(self, base: Path, packages: Packages, bento: Path, name: str, labels: Mapping[str, str]) -> str:
        """Put the layers together. ``base`` and ``packages`` lie in the builder's place.

        Args:
            base: tar of the root file system.
            packages: to lie over it.
            bento: the release's Bento, with code, bundle and signature.
            name: of the image in the store, such as ``ctfoundry-wholebody:0123456789abcdef``.
            labels: OCI annotations.

        Returns:
            The image's name in the store.
        """
        release = self._place / "release"
        shutil.rmtree(release, ignore_errors=True)
        stage_release(bento, release)
        command = [*self._command, "bud", "--quiet", "--isolation", "chroot", "--layers", "--timestamp", str(EPOCH)]
        command += ["--format", "oci", "--file", CONTAINERFILE.resolve(), "--tag", f"localhost/{name}"]
        for argument, path in (("BASE", base), ("PACKAGES", packages.root), ("RELEASE", release)):
            command += ["--build-arg", f"{argument}={path.resolve().relative_to(self._place)}"]
        for label, value in sorted(labels.items()):
            command += ["--label", f"{label}={value}"]
        run([*command, self._place], "buildah bud", BUILDAH_ISOLATION="chroot")
        shutil.rmtree(release)
        return f"localhost/{name}"

    def push(self, name: str, layout: Path) -> Image:
        """The image as an OCI layout, not yet tagged, with its health check."""
        run([*self._command, "push", "--quiet", name, f"oci:{layout}:new"], "buildah push")
        return with_healthcheck(layout)

    @contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """The image's root file system, writable, with what is written gone afterwards."""
        container = run([*self._command, "from", "--pull-never", name], "buildah from").strip()
        try:
            yield Path(run([*self._command, "mount", container], "buildah mount").strip())
        finally:
            run([*self._command, "rm", container], "buildah rm")

    def same_layers(self, name: str, image: Image) -> bool:
        """Whether a layout's image and that of the store are the same, uncompressed."""
        shown = json.loads(run([*self._command, "inspect", "--type", "image", name], "buildah inspect"))
        return bool(shown["OCIv1"]["rootfs"]["diff_ids"] == image.config["rootfs"]["diff_ids"])


def stage_release(bento: Path, target: Path) -> None:
    """What of a Bento goes into the image: code, bundle and signature, and the command. Its times stay behind."""
    sources = target / SOURCES
    for name in (*SOURCE_PACKAGES, BUNDLE, IN_BENTO):
        if (bento / "src" / name).is_dir():
            shutil.copytree(bento / "src" / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for package in SOURCE_PACKAGES:
        compile_all(target, f"{SOURCES}/{package}")
    command = target / "usr" / "local" / "bin" / "ctfoundry"
    command.parent.mkdir(parents=True)
    command.write_text(COMMAND)
    command.chmod(0o755)
    settle(target)


def read_image(layout: Path) -> Image:
    """The one image of a layout."""
    (entry,) = read_json(layout / "index.json")["manifests"]
    manifest = json.loads(_blob(layout, entry["digest"]).read_bytes())
    config = json.loads(_blob(layout, manifest["config"]["digest"]).read_bytes())
    layers = tuple((layer["digest"], layer["size"]) for layer in manifest["layers"])
    return Image(layout, entry["digest"], config, layers)


def with_healthcheck(layout: Path) -> Image:
    """Write the health check into an image's configuration, and take the tag away: it is given after the test."""
    (entry,) = read_json(layout / "index.json")["manifests"]
    manifest = json.loads(_blob(layout, entry["digest"]).read_bytes())
    config = json.loads(_blob(layout, manifest["config"]["digest"]).read_bytes())
    for old in (entry["digest"], manifest["config"]["digest"]):
        _blob(layout, old).unlink()
    config["config"]["Healthcheck"] = HEALTHCHECK
    manifest["config"] |= _write_blob(layout, config)
    entry |= _write_blob(layout, manifest)
    entry.pop("annotations", None)
    _write_index(layout, entry)
    return read_image(layout)


def tag_image(layout: Path, tag: str) -> None:
    """Give the image of a layout its tag."""
    (entry,) = read_json(layout / "index.json")["manifests"]
    _write_index(layout, entry | {"annotations": {REF: tag}})


def _write_index(layout: Path, entry: Mapping[str, Any]) -> None:
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    (layout / "index.json").write_bytes(_bytes(index))


def _write_blob(layout: Path, content: Any) -> dict[str, Any]:
    data = _bytes(content)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    _blob(layout, digest).write_bytes(data)
    return {"digest": digest, "size": len(data)}


def _bytes(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
