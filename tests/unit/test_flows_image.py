"""What goes into an image, how its container is started, and what its self-test refuses."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from components.errors import UserError
from flows.image.build import HEALTHCHECK, read_image, tag_image, with_healthcheck
from flows.image.container import UID, Ended, Mount, specification
from flows.image.contents import Part, debian_parts, licence_table, stated_licences
from flows.image.parts import prune, require_variant
from flows.image.selftest import (
    _require_production,
    _require_refusal,
    _require_same,
    expected_answers,
    require_same_files,
)

CONFIG = {"config": {"Env": ["HOME=/tmp", "CTFOUNDRY_REQUIRE_SIGNATURE=1"], "WorkingDir": "/opt/ctfoundry/src"}}


def test_what_does_not_run_goes_and_what_torch_looks_for_stays(tmp_path: Path) -> None:
    files = ("torch/bin/protoc", "torch/bin/torch_shm_manager", "torch/include/a/b.h", "pandas/tests/test_a.py", "a.py")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    prune(tmp_path, ("torch/bin", "torch/include", "**/tests"), ("torch/bin/torch_shm_manager",))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a.py", "torch", "torch/bin", "torch/bin/torch_shm_manager",
    ]  # fmt: skip


def test_torch_for_another_device_is_refused() -> None:
    cuda, cpu = "__version__ = '2.13.0'\ncuda = '13.0'\n", "__version__ = '2.13.0+cpu'\ncuda = None\n"
    require_variant(cpu, "cpu")
    require_variant(cuda, "cuda")
    with pytest.raises(UserError, match=r"^torch 2\.13\.0: the index gives a build for cuda, .* with --index$"):
        require_variant(cuda, "cpu")
    with pytest.raises(UserError, match="a build for cpu, and the image is for cuda"):
        require_variant(cpu, "cuda")


def test_a_container_may_do_nothing_but_write_where_it_is_told(tmp_path: Path) -> None:
    mounts = [Mount(tmp_path, "/in"), Mount(tmp_path, "/out", writable=True)]
    said = specification(tmp_path, CONFIG, ["serve"], mounts, {"CTFOUNDRY_REQUIRE_SIGNATURE": "0"})
    assert said["root"] == {"path": str(tmp_path), "readonly": True}
    assert said["process"]["user"] == {"uid": UID, "gid": UID}
    assert set(map(tuple, said["process"]["capabilities"].values())) == {()}
    assert said["process"]["noNewPrivileges"] is True
    assert said["process"]["env"] == ["CTFOUNDRY_REQUIRE_SIGNATURE=0", "HOME=/tmp"]
    assert {"type": "network"} in said["linux"]["namespaces"]
    bound = {mount["destination"]: mount["options"][1] for mount in said["mounts"] if mount["type"] == "bind"}
    assert bound == {"/in": "ro", "/out": "rw"}


def _receipt() -> dict[str, Any]:
    return {
        "answers": {"embed": {"embedding": [1.0]}, "segment": {"a/b": {"part": "a/b"}}},
        "outputs": {"segment a/b": {"file": "segmentations/x.nii.gz", "sha256": "ab"}},
    }


def test_all_that_a_release_answers_is_asked_of_its_image() -> None:
    assert expected_answers(_receipt()) == {
        "/embed": {"status": 200, "json": {"embedding": [1.0]}},
        "/segment?head=a%2Fb": {"status": 200, "json": {"part": "a/b"}},
        "/segment?head=a%2Fb&form=nifti": {"status": 200, "sha256": "ab"},
    }


def test_an_answer_that_differs_in_the_last_digit_is_told_by_its_key() -> None:
    expected = {"status": 200, "json": {"embedding": [0.1], "dim": 1}}
    _require_same("/embed", expected, {"status": 200, "json": {"dim": 1, "embedding": [0.1]}})
    with pytest.raises(UserError, match=r"^image: /embed: embedding: not what the release answers here"):
        _require_same("/embed", expected, {"status": 200, "json": {"embedding": [0.10000001], "dim": 1}})
    with pytest.raises(UserError, match=r"^image: /embed: answers 503: .*not tagged$"):
        _require_same("/embed", expected, {"status": 503, "json": {"error": "draining"}})


def test_folders_are_alike_in_every_file_and_archives_in_their_members(tmp_path: Path) -> None:
    for side, version in (("here", 45), ("there", 20)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "scans.csv").write_text("id\n")
        with zipfile.ZipFile(tmp_path / side / "embeddings.npz", "w") as archive:
            entry = zipfile.ZipInfo("ids.npy")
            entry.extract_version = version
            archive.writestr(entry, b"ids")
    require_same_files(tmp_path / "here", tmp_path / "there")
    (tmp_path / "there" / "scans.csv").write_text("id,\n")
    with pytest.raises(UserError, match=r"scans\.csv is not that of the release here"):
        require_same_files(tmp_path / "here", tmp_path / "there")
    (tmp_path / "there" / "scans.csv").unlink()
    with pytest.raises(UserError, match=r"scans\.csv is not that"):
        require_same_files(tmp_path / "here", tmp_path / "there")


def test_an_image_must_refuse_in_one_line_where_no_keys_are_mounted() -> None:
    line = "ctfoundry: CTFOUNDRY_TRUSTED_KEYS: /keys: no such file or directory\n"
    _require_refusal(Ended(1, line))
    for ended in (Ended(0, line), Ended(1, f"Traceback\n{line}"), Ended(1, "killed\n")):
        with pytest.raises(UserError, match=r"^image: serves without trusted keys"):
            _require_refusal(ended)


@pytest.mark.parametrize(
    ("name", "value"),
    [("uid", 0), ("capabilities", ["00000000a80425fb"]), ("read_only", False), ("links", ["eth0", "lo"]), ("ended", 1)],
)
def test_a_test_that_is_laxer_than_production_is_none(name: str, value: object) -> None:
    told = {
        "uid": UID, "capabilities": ["0000000000000000"], "no_new_privileges": True, "read_only": True, "links": ["lo"],
        "healthy": 0, "ended": 0,
    }  # fmt: skip
    _require_production(told)
    with pytest.raises(UserError, match=f"^image: {name} is "):
        _require_production({**told, name: value})


def _layout(folder: Path) -> Path:
    """An OCI layout as buildah writes it, with one layer of no bytes."""

    def blob(content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / "sha256" / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    (folder / "blobs" / "sha256").mkdir(parents=True)
    config = blob(json.dumps({"config": {"Cmd": ["serve"]}, "rootfs": {"diff_ids": ["sha256:00"]}}).encode())
    manifest = blob(json.dumps({"schemaVersion": 2, "config": config, "layers": [blob(b"")]}).encode())
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "new"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return folder


def test_the_health_check_is_in_the_image_and_the_tag_comes_by_itself(tmp_path: Path) -> None:
    one, other = (with_healthcheck(_layout(tmp_path / name)) for name in ("one", "other"))
    assert one.digest == other.digest
    assert one.config["config"] == {"Cmd": ["serve"], "Healthcheck": HEALTHCHECK}
    assert "ref.name" not in (one.layout / "index.json").read_text()
    named = {f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in one.layout.glob("blobs/*/*")}
    assert len(named) == 3
    assert one.digest in named
    tag_image(one.layout, "ctfoundry-a:1")
    assert read_image(one.layout).digest == one.digest
    (entry,) = json.loads((one.layout / "index.json").read_text())["manifests"]
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "ctfoundry-a:1"}


def test_licences_are_taken_as_they_are_stated() -> None:
    said = Message()
    said["Classifier"], said["License"] = "License :: OSI Approved :: MIT License", "x" * 500
    assert stated_licences(said) == (("MIT License",), False)
    said["License-Expression"] = "MIT AND Zlib"
    assert stated_licences(said) == (("MIT AND Zlib",), True)
    text = Message()
    text["License"] = "x" * 500
    assert stated_licences(text) == ((), False)


def test_debian_packages_and_their_licences_are_those_of_the_root(tmp_path: Path) -> None:
    status = "".join(
        f"Package: {name}\nArchitecture: amd64\nVersion: 1:2.0+b1\nDescription: x\n Version: z\n\n"
        for name in ("tini", "libtini")
    )
    files = {
        "./var/lib/dpkg/status": status,
        "./usr/share/doc/tini/copyright": "Files: *\nLicense: MIT\n text\n\nLicense: GPL-2+\n",
    }
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("./usr/share/doc/libtini")
        link.type, link.linkname = tarfile.SYMTYPE, "tini"
        archive.addfile(link)
    parts = debian_parts(tmp_path / "base.tar")
    assert [part.name for part in parts] == ["libtini", "tini"]
    assert {part.licences for part in parts} == {("GPL-2+", "MIT")}
    assert parts[1].purl == "pkg:deb/debian/tini@1%3A2.0%2Bb1?arch=amd64&distro=bookworm"
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(UserError, match=r"^empty\.tar: no /var/lib/dpkg/status"):
        debian_parts(tmp_path / "empty.tar")


def test_a_licence_that_is_not_stated_is_said_not_to_be() -> None:
    parts = [Part("python", "a", "1", "pkg:pypi/a@1", ("MIT",), True), Part("debian", "b", "2", "pkg:deb/debian/b@2")]
    assert licence_table(parts).splitlines() == [
        "kind,name,version,licence",
        "python,a,1,MIT",
        "debian,b,2,see its copyright file",
    ]
