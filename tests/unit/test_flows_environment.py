"""The environment a run makes for itself, whatever the place gives it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from components.errors import UserError
from flows.environment import prepare
from flows.places import require_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty folder as the working directory, and an environment that may be spoilt."""
    monkeypatch.chdir(tmp_path)
    for name in ("NO_PROXY", "no_proxy", "PREFECT_HOME", "PREFECT_API_URL", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in dict(os.environ).items():  # what is set from here on is undone
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("before", [None, "localhost,.site", "127.0.0.1"])
def test_a_proxy_of_the_house_is_not_asked_for_our_own_servers(place: pytest.MonkeyPatch, before: str | None) -> None:
    if before:
        place.setenv("NO_PROXY", before)
    prepare()
    for name in ("NO_PROXY", "no_proxy"):
        hosts = os.environ[name].split(",")
        assert {"127.0.0.1", "localhost", *(before or "").split(",")} - {""} == set(hosts)
        assert len(hosts) == len(set(hosts))


def test_a_socks_proxy_without_its_package_is_one_line(place: pytest.MonkeyPatch) -> None:
    place.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    place.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^ALL_PROXY is a socks proxy, for which the package socksio is missing"):
        require_server()


def test_a_named_server_that_is_down_is_one_line(place: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/api"
    place.setenv("PREFECT_API_URL", address)
    with pytest.raises(UserError, match="no Prefect server answers there") as raised:
        require_server()
    assert "\n" not in str(raised.value)


def test_a_home_that_is_not_there_is_replaced_and_one_that_is_there_is_kept(place: pytest.MonkeyPatch) -> None:
    prepare()
    assert os.environ["HOME"] == str(Path.home())
    for home in ("/nonexistent", "/"):
        place.setenv("HOME", home)
        prepare()
        assert Path(os.environ["HOME"]) == Path.cwd() / ".ctfoundry" / "home"
        assert Path(os.environ["HOME"]).is_dir()


BARE = """
import getpass, os, sys
import components.files  # while we may still read it
source = sys.stdin.read()
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
exec(compile(source, "environment", "exec"))
prepare()
print(getpass.getuser(), os.environ["HOME"])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_user_without_a_name_has_one() -> None:
    """uid 12345 is in no passwd file, as in containers started with ``--user``."""
    named = ("USER", "LOGNAME", "LNAME", "USERNAME")
    variables = {name: value for name, value in os.environ.items() if name not in named}
    variables |= {"HOME": "/", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as place:  # pytest's own are closed to others
        Path(place).chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", BARE], cwd=place, env=variables, capture_output=True, text=True,
            input=(ROOT / "flows" / "environment.py").read_text(),
        )  # fmt: skip
    assert done.stdout.split() == ["user12345", f"{Path(place).resolve()}/.ctfoundry/home"], done.stderr
