"""The places a release runs in: right there, or one line before anything is begun."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from checkout import ROOT, Checkout
from tiny_graph import tiny

from components.bundle.manifest import verify_bundle

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    folder = tmp_path_factory.mktemp("places") / "my doctor's scans"
    folder.mkdir()
    return tiny(folder)


def run(checkout: Checkout, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run in the checkout, without what this test session has prepared for itself."""
    prepared = ("NO_PROXY", "no_proxy", "USER", "LOGNAME", "HOME")
    kept = {name: value for name, value in checkout.environment().items() if name not in prepared}
    return subprocess.run(command, cwd=checkout.folder, env=kept | variables, capture_output=True, text=True)


def test_a_named_server_that_is_down_is_one_line_and_changes_nothing(checkout: Checkout) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
    before = (checkout.folder / "params.yaml").read_bytes()
    done = run(checkout, "ctfoundry", "release", "--source", "idc", PREFECT_API_URL=address)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"PREFECT_API_URL '{address}': no Prefect server answers there" in line
    assert (checkout.folder / "params.yaml").read_bytes() == before


def test_an_unpacked_archive_is_one_line(tmp_path: Path) -> None:
    archive = tiny(tmp_path)
    shutil.rmtree(tmp_path / ".git")
    for command in ("release", "verify"):
        done = run(archive, "ctfoundry", command, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "no git repository" in line


def test_make_hands_a_folder_over_as_it_is_written(tmp_path: Path) -> None:
    source = 'dicom:/data/O\'Neill & "sons"/$1 scans'
    receiver = tmp_path / "ctfoundry"
    receiver.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    receiver.chmod(0o755)
    done = subprocess.run(
        ["make", "release", f"SOURCE={source}", f"EVALUATION={source}", "JOBS=3", "READY=", f"BIN={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    expected = ["release", "--line", "wholebody", "--source", source, "--evaluation", source, "--jobs", "3"]
    assert done.stdout.splitlines() == expected, done.stderr
    plain = subprocess.run(["make", "release", "READY=", f"BIN={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert plain.stdout.splitlines() == expected[:3], "of the source that params.yaml names"


@pytest.mark.slow
def test_a_release_is_made_in_an_odd_place(checkout: Checkout, tmp_path: Path) -> None:
    """A space and a quote in the path, proxies, no home, no user's name, a deep TMPDIR, another owner, DVC's links."""
    deep = tmp_path / ("slurm_jobdir_" + "x" * 80)
    deep.mkdir()
    assert run(checkout, "dvc", "config", "--local", "cache.type", "symlink", USER="somebody").returncode == 0
    place = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE) | {
        "HOME": "/nonexistent", "TMPDIR": str(deep), "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "240",
    }  # fmt: skip
    done = run(checkout, "ctfoundry", "release", "--line", "wholebody", **place)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Prefect's server does not answer" not in done.stderr
    bundle = checkout.folder / "releases" / "wholebody"
    assert (bundle / "encoder.json").is_symlink()
    manifest = verify_bundle(bundle)
    (bento,) = (checkout.folder / ".ctfoundry" / "bentoml" / "bentos").glob("*/*/bento.yaml")
    labels = yaml.safe_load(bento.read_text())["labels"]
    assert labels["git_commit"] == checkout.git("rev-parse", "HEAD").strip()
    assert labels["digest"] == manifest.digest[:63]
    assert not any(path.is_symlink() for path in (bento.parent / "src" / "bundle").rglob("*"))
