"""A Bento holds all that the service needs: built offline, once per digest, and served from its own code."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from released import ROOT, first_answer, free_port, write_release
from team_keys import private_pem, public_pem

from components.bundle.inputs import code_hash
from components.bundle.manifest import Manifest, write_manifest
from components.bundle.signature import signature_file, verify_release
from components.bundle.signing import sign_release
from components.bundle.trust import trusted_keys
from components.errors import UserError
from components.files import sha256_tree, write_text
from flows.run import build_bento as build_release_bento
from serving.build import bento_environment, bento_path, bento_tag, build_bento
from serving.requirements import pinned_requirements
from serving.routes import ROUTES
from serving.run import serve, serve_command
from serving.tls import Tls
from tests.certificates import Authority


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's code, with a lock file of what is installed, and a release made from it."""
    root = tmp_path_factory.mktemp("project")
    for package in ("components", "serving"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    app = root / "serving" / "working.py"  # a mark by which the served code is known from this checkout's
    app.write_text(app.read_text().replace('"line": manifest.line', '"line": manifest.line, "mark": "this copy"'))
    pins = sorted(f"{d.name}=={d.version}" for d in metadata.distributions() if d.name != "ctfoundry")
    lock = root / "constraints.txt"
    lock.write_text("\n".join(["--extra-index-url https://wheels.invalid/simple", *pins]) + "\n")
    write_text(root / "infra" / "pins" / "serving.txt", "\n".join(pinned_requirements(lock)) + "\n")
    folder = root / "releases" / "wholebody"
    write_release(folder)
    (folder / "MODEL_CARD.md").write_text("# A model card\n")
    _sign(root)
    return root


def _sign(root: Path) -> Manifest:
    inputs = {"code": code_hash(root), "lock": sha256_tree(root / "infra" / "pins")}
    return write_manifest(root / "releases" / "wholebody", "wholebody", "ctfoundry-wholebody", inputs)


@pytest.fixture(scope="module")
def tag(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Bento of that release, in a store of its own, built where every way out ends at a closed port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield build_bento(root / "releases" / "wholebody", {"commit": "abc123"}, root)


def test_the_tag_is_the_line_and_the_digest(root: Path, tag: str) -> None:
    assert tag == bento_tag(_sign(root))
    assert tag.startswith("ctfoundry-wholebody:")
    assert len(tag.partition(":")[2]) == 16


def test_the_bento_holds_code_bundle_labels_and_pinned_requirements(root: Path, tag: str) -> None:
    path = bento_path(tag)
    assert path is not None
    assert code_hash(path / "src") == code_hash(root)
    assert (path / "src" / "bundle" / "encoder.safetensors").is_file()
    assert (path / "README.md").read_text() == "# A model card\n"
    labels = yaml.safe_load((path / "bento.yaml").read_text())["labels"]
    assert (labels["commit"], labels["line"]) == ("abc123", "wholebody")
    requirements = (path / "env" / "python" / "requirements.txt").read_text().splitlines()
    packages = [line for line in requirements if line and not line.startswith(("--", "#"))]
    assert all("==" in line for line in packages)
    assert {"torch", "monai", "bentoml"} <= {line.partition("==")[0] for line in packages}
    assert not {"prefect", "dvc", "great_expectations", "ray"} & {line.partition("==")[0] for line in packages}


def test_the_same_bundle_is_not_built_twice(root: Path, tag: str) -> None:
    path = bento_path(tag)
    assert path is not None
    before = (path / "bento.yaml").stat().st_mtime_ns
    assert build_bento(root / "releases" / "wholebody", {"commit": "later"}, root) == tag
    assert (path / "bento.yaml").stat().st_mtime_ns == before


def test_code_that_is_not_the_bundles_builds_no_bento(root: Path, tag: str) -> None:
    source = root / "components" / "command.py"
    content = source.read_text()
    (root / "releases" / "wholebody" / "note.txt").write_text("another digest\n")
    try:
        _sign(root)
        source.write_text(content + "\n# changed\n")
        with pytest.raises(UserError, match="code has changed since it was made"):
            build_bento(root / "releases" / "wholebody", {}, root)
    finally:
        source.write_text(content)
        (root / "releases" / "wholebody" / "note.txt").unlink()
        _sign(root)


def test_a_bento_is_served_with_its_own_code_and_bundle(tag: str, tmp_path: Path) -> None:
    port = free_port()
    command = serve_command(tag, port=port)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=bento_environment(), stdout=log, stderr=log)
        try:
            told = first_answer(server, f"http://127.0.0.1:{port}/model", tmp_path / "log").json()
            about = httpx.get(f"http://127.0.0.1:{port}/about", timeout=5)
            paths = [told.path for told in ROUTES if told.public]
            files = [httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5) for path in paths]
        finally:
            server.terminate()
            server.wait(timeout=30)
    assert told["digest"].startswith(tag.partition(":")[2])
    assert told["mark"] == "this copy"
    assert [file.status_code for file in files] == [200] * len(paths), "a file of the page is not in the Bento"
    assert told["digest"] in about.text


@pytest.mark.parametrize(
    ("target", "host", "port", "says"),
    [
        ("nothing:0", "127.0.0.1", 3000, "bento nothing:0: not in the local store"),
        ("head", "127.0.0.1", 3000, "this is no release folder"),
        ("wholebody", "example.org", 3000, "host 'example.org' is not allowed"),
        ("wholebody", "127.0.0.1", 70000, "port 70000 is not allowed"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(
    tag: str, root: Path, monkeypatch: pytest.MonkeyPatch, target: str, host: str, port: int, says: str
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=says):
        serve_command(target, host, port)


def test_a_bento_that_was_damaged_is_not_served(tag: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bento_path(tag)
    assert path is not None
    monkeypatch.setenv("CTFOUNDRY_CONCURRENCY", "many")
    with pytest.raises(UserError, match="CTFOUNDRY_CONCURRENCY: 'many' is not allowed"):
        serve_command(tag)
    (path / "src" / "bundle" / "note.txt").write_text("not the release's\n")
    try:
        with pytest.raises(UserError, match=r"note\.txt: not in the manifest"):
            serve_command(tag)
    finally:
        (path / "src" / "bundle" / "note.txt").unlink()


def test_a_release_is_signed_where_a_key_is_at_hand_and_its_bento_carries_that(
    tag: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key, colleague = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    (tmp_path / "team.pub").write_bytes(public_pem(key))
    folder, path = root / "releases" / "wholebody", bento_path(tag)
    assert path is not None
    carried = path / "src" / "signature" / "bundle.sig"
    monkeypatch.chdir(root)
    monkeypatch.setenv("CTFOUNDRY_TRUSTED_KEYS", str(tmp_path))
    try:
        with pytest.raises(UserError, match=r"^signature bundle\.sig: missing beside the bundle"):
            serve_command(tag)
        monkeypatch.setenv("CTFOUNDRY_SIGNING_KEY", private_pem(key).decode())
        assert build_release_bento("wholebody") == tag
        assert carried.read_bytes() == signature_file(folder).read_bytes()
        assert "serve" in serve_command(tag)
        monkeypatch.delenv("CTFOUNDRY_SIGNING_KEY")
        before = carried.read_bytes()
        sign_release(shutil.copytree(folder, tmp_path / "wholebody"), colleague)
        signature_file(folder).write_text("of another release")
        build_release_bento("wholebody")
        assert carried.read_bytes() == before
        assert "wholebody.sig: is of another release, and not in the Bento" in caplog.text
        shutil.copyfile(signature_file(tmp_path / "wholebody"), carried)
        with pytest.raises(UserError, match=r"^signature bundle\.sig: by the key .*, which is not trusted here"):
            serve_command(tag)
    finally:
        shutil.rmtree(carried.parent, ignore_errors=True)
        signature_file(folder).unlink(missing_ok=True)


def test_a_signature_goes_into_a_bento_that_is_built(
    tag: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, folder = ec.generate_private_key(ec.SECP256R1()), root / "releases" / "wholebody"
    (tmp_path / "team.pub").write_bytes(public_pem(key))
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    try:
        signature = sign_release(folder, key)
        assert build_bento(folder, {}, root) == tag
        path = bento_path(tag)
        assert path is not None
        assert (path / "src" / "signature" / "bundle.sig").read_bytes() == signature.read_bytes()
        verified = verify_release(path / "src" / "bundle", trusted_keys(tmp_path / "team.pub"))
    finally:
        signature_file(folder).unlink(missing_ok=True)
    assert verified.key is not None
    assert verified.key.name == "team"


def test_certificates_and_tokens_are_looked_at_here_and_found_from_the_store(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server runs in another folder: names that are relative to this one would lead nowhere there."""
    monkeypatch.chdir(tmp_path)
    pair = Authority(tmp_path).pair("server")
    tls = Tls(Path(pair.certificate.name), Path(pair.key.name))
    became: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _, command, environment: became.append((command, environment)))
    monkeypatch.setenv("CTFOUNDRY_TOKENS_FILE", "tokens")
    key, path = ec.generate_private_key(ec.SECP256R1()), bento_path(tag)
    assert path is not None
    (tmp_path / "team.pub").write_bytes(public_pem(key))
    sign_release(path / "src" / "bundle", key)
    monkeypatch.setenv("CTFOUNDRY_TRUSTED_KEYS", "team.pub")
    with pytest.raises(UserError, match=r"^CTFOUNDRY_TOKENS_FILE: tokens: no such file or directory$"):
        serve(tag, port=free_port(), tls=tls)
    (tmp_path / "tokens").write_text("alice:0123456789abcdef\n")
    with pytest.raises(UserError, match=r"^--ssl-certfile nowhere: no such file or directory$"):
        serve(tag, port=free_port(), tls=Tls(Path("nowhere"), tls.keyfile))
    assert became == []
    serve(tag, port=free_port(), tls=tls)
    ((command, environment),) = became
    assert command[-4:] == ["--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key)]
    assert environment["CTFOUNDRY_TOKENS_FILE"] == str(tmp_path / "tokens")
    assert environment["CTFOUNDRY_TRUSTED_KEYS"] == str(tmp_path / "team.pub")
    signature_file(path / "src" / "bundle").unlink()


def test_a_port_that_is_taken_is_one_clear_line(tag: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} of 127.0.0.1: address already in use; choose another"):
            serve(tag, port=port)


def test_a_package_that_the_lock_file_does_not_pin_is_named(tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("numpy==1.0\n")
    with pytest.raises(UserError, match=r"constraints.txt: does not pin .*torch"):
        pinned_requirements(tmp_path / "constraints.txt")


BLOCKED = """
import sys
from importlib import import_module, metadata
from pathlib import Path
from packaging.utils import canonicalize_name
from serving.requirements import runtime_closure

closure = set(runtime_closure())
owners = metadata.packages_distributions()
outside = {name for name, of in owners.items() if not {canonicalize_name(o) for o in of} & closure}
outside -= {"components", "serving", "flows"}
for name in [n for n in sys.modules if n.partition(".")[0] in outside]:
    del sys.modules[name]

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in outside:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import serving
for module in sorted(Path(serving.__file__).parent.glob("*.py")):  # what is imported late, such as for DICOM, too
    import_module(f"serving.{module.stem}")
from serving.embedding import embed_file, open_release
print(embed_file(Path(sys.argv[1]), open_release(Path(sys.argv[2]))).embedding.size)
"""


def test_the_requirements_suffice_for_all_that_serving_imports_and_to_embed_a_scan(root: Path, tmp_path: Path) -> None:
    hu = np.full((60, 60, 40), -1000, dtype=np.int16)
    hu[10:50, 15:45] = 40
    nib.Nifti1Image(hu, np.diag([3.0, 3.0, 3.0, 1.0])).to_filename(tmp_path / "scan.nii.gz")
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "scan.nii.gz"), str(root / "releases" / "wholebody")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 0
