"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.environment import prepare

prepare()

# What `make test`, or a git hook that runs it, has set for itself is not for the make and the git that tests start.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"):
    os.environ.pop(name, None)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def ct_root() -> Path:
    """Real CT, beside the checkout. Its absence is a reason to skip on a developer's machine, and a failure in CI."""
    folder = ROOT.parent / "shared" / "ct"
    if not (folder / "dicom").is_dir():
        reason = "real CT not found in ../shared/ct; see components/README.md"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """A site's own key behind pseudonyms, without which no source of a site's data is read."""
    key = "a secret of the tests' own"
    monkeypatch.setenv("CTFOUNDRY_PSEUDONYM_KEY", key)
    return key


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's root as the working directory."""
    monkeypatch.chdir(ROOT)
    return ROOT
