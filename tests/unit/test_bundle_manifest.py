"""A release folder proves what it holds."""

import hashlib
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from components.bundle.inputs import SOURCE_SUFFIXES, code_hash, parameters_hash
from components.bundle.manifest import read_manifest, verify_bundle, write_manifest
from components.errors import UserError
from components.files import read_json, write_json

INPUTS = {"code": "a" * 64, "lock": "b" * 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    release = tmp_path / "wholebody"
    (release / "plots").mkdir(parents=True)
    (release / "encoder.safetensors").write_bytes(b"weights")
    (release / "metrics.json").write_text("{}\n")
    (release / "plots" / "a.csv").write_text("x\n1\n")
    write_manifest(release, "wholebody", "ctfoundry-wholebody", INPUTS)
    return release


def test_an_untouched_folder_verifies_and_its_manifest_lists_every_file(folder: Path) -> None:
    manifest = verify_bundle(folder)
    assert sorted(manifest.files) == ["encoder.safetensors", "metrics.json", "plots/a.csv"]
    assert manifest.inputs == INPUTS
    assert manifest == read_manifest(folder)


def test_the_digest_is_the_same_wherever_and_whenever_it_was_written(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "copy"
    (other / "plots").mkdir(parents=True)
    for path in ("plots/a.csv", "metrics.json", "encoder.safetensors"):
        (other / path).write_bytes((folder / path).read_bytes())
    write_manifest(other, "wholebody", "ctfoundry-wholebody", dict(reversed(INPUTS.items())))
    assert (other / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


@pytest.mark.parametrize("changed", ["line", "name", "input", "file"])
def test_the_digest_depends_on_everything_in_the_manifest(folder: Path, changed: str) -> None:
    before = read_manifest(folder).digest
    line = "head" if changed == "line" else "wholebody"
    name = "ctfoundry-other" if changed == "name" else "ctfoundry-wholebody"
    inputs = {**INPUTS, "code": "c" * 64} if changed == "input" else INPUTS
    if changed == "file":
        (folder / "metrics.json").write_text("[]\n")
    assert write_manifest(folder, line, name, inputs).digest != before


def test_the_first_file_that_differs_is_named(folder: Path) -> None:
    (folder / "plots" / "a.csv").write_text("x\n2\n")
    (folder / "metrics.json").write_text("[]\n")
    with pytest.raises(UserError, match=r"^bundle wholebody: metrics.json: differs from the manifest"):
        verify_bundle(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"encoder.safetensors: missing"):
        verify_bundle(folder)


def test_a_file_too_many_is_named(folder: Path) -> None:
    (folder / "plots" / "payload.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"plots/payload.py: not in the manifest"):
        verify_bundle(folder)


def test_a_link_in_place_of_a_file_is_refused_even_with_equal_bytes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("{}\n")
    (folder / "metrics.json").unlink()
    (folder / "metrics.json").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"metrics.json: is a link"):
        verify_bundle(folder)


def test_links_that_dvc_made_into_its_own_cache_are_files(folder: Path, tmp_path: Path) -> None:
    """What ``dvc checkout`` leaves where ``cache.type`` is symlink; not a link elsewhere, or to other bytes."""
    for name in ("encoder.safetensors", "metrics.json", "plots/a.csv", "manifest.json"):
        content = (folder / name).read_bytes()
        digest = hashlib.md5(content).hexdigest()
        cached = tmp_path / "cache" / "files" / "md5" / digest[:2] / digest[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(content)
        (folder / name).unlink()
        (folder / name).symlink_to(cached)
    assert sorted(verify_bundle(folder).files) == ["encoder.safetensors", "metrics.json", "plots/a.csv"]
    (folder / "metrics.json").resolve().write_text("{ }\n")
    with pytest.raises(UserError, match=r"metrics.json: is a link; a bundle holds plain files, or DVC's links"):
        verify_bundle(folder)


def test_line_ends_are_the_same_whatever_a_machines_git_makes_of_them(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    for package in ("components", "serving"):
        shutil.copytree(root / package, origin / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(root / ".gitattributes", origin / ".gitattributes")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "code"]):
        subprocess.run(["git", *identity, *command], cwd=origin, check=True)
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", origin, clone], check=True)
    assert code_hash(clone) == code_hash(origin)


def test_a_forged_entry_does_not_add_up_with_the_digest(folder: Path) -> None:
    content = read_json(folder / "manifest.json")
    content["inputs"]["code"] = "f" * 64
    write_json(folder / "manifest.json", content)
    with pytest.raises(UserError, match=r"manifest.json: digest .* is not that of its entries"):
        verify_bundle(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not JSON"), ("[]", "keys are not those"), ('{"format": 1}', "keys are not those"), (None, "missing")],
)
def test_a_manifest_that_is_none_is_one_clear_line(folder: Path, text: str | None, says: str) -> None:
    (folder / "manifest.json").unlink()
    if text is not None:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=says) as raised:
        verify_bundle(folder)
    assert "\n" not in str(raised.value)


def test_code_is_hashed_by_path_and_bytes_of_source_alone(tmp_path: Path) -> None:
    for package in ("components", "serving", "flows"):
        (tmp_path / package / "__pycache__").mkdir(parents=True)
        (tmp_path / package / "a.py").write_text("x = 1\n")
    before = code_hash(tmp_path)
    (tmp_path / "components" / "__pycache__" / "a.cpython-311.py").write_text("compiled")
    (tmp_path / "components" / "notes.md").write_text("not source")
    (tmp_path / "flows" / "a.py").write_text("x = 2\n")
    assert code_hash(tmp_path) == before
    (tmp_path / "components" / "card.md.j2").write_text("{{ x }}")
    assert code_hash(tmp_path) != before


@pytest.mark.parametrize("name", ["a.css", "a.js", "a.json", "a.svg", "a.txt", "a.wasm", "a.html", "a.j2", "a.sql"])
def test_what_a_page_needs_is_code(tmp_path: Path, name: str) -> None:
    (tmp_path / "serving").mkdir()
    before = code_hash(tmp_path)
    (tmp_path / "serving" / name).write_bytes(b"x")
    assert code_hash(tmp_path) != before


def test_every_file_that_the_service_needs_is_packed_with_it() -> None:
    """Into the Bento by its suffix, into a wheel by the project's own list."""
    root = Path(__file__).resolve().parents[2]
    files = [path for path in (root / "serving").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    kept = {path.suffix for path in files if path.suffix not in (".md", ".typed")}  # of people, type checkers
    assert {".css", ".html", ".js", ".txt"} <= kept <= set(SOURCE_SUFFIXES)
    packed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert {f"*{suffix}" for suffix in SOURCE_SUFFIXES} - {"*.py"} <= set(packed)
    assert "py.typed" in packed


def test_parameters_are_hashed_by_content_not_by_order() -> None:
    assert parameters_hash({"a": 1, "b": [1, 2]}) == parameters_hash({"b": [1, 2], "a": 1})
    assert parameters_hash({"a": 1}) != parameters_hash({"a": 2})
