"""What starts a release by itself: a study in a PACS, a version of the Imaging Data Commons, scans unlike training's, a
release that was not reproduced. And what it would bring is shown, and asked, before anything is transferred."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from platform_of import RUN_S, Platform
from tiny_graph import tiny, wait_until

from flows.watch import installed
from tests.orthanc import PASSWORD, TITLE, USER, Orthanc, require_orthanc
from tests.unit.small_pacs import as_file, make_series

pytestmark = pytest.mark.slow
STORESCU = shutil.which("storescu", path="/usr/bin:/usr/local/bin")  # DCMTK's; pynetdicom brings one, too
SERIES_GB = 12 * 526_000 / 1e9  # as a PACS, which tells no bytes, is reckoned to hold a series


class Elsewhere(BaseHTTPRequestHandler):
    """The package index, with these versions of idc-index-data, and a Prometheus, in which these alarms ring."""

    versions: ClassVar[list[int]] = []
    rings: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.path.startswith("/simple/idc-index-data/"):
            names = [f"idc_index_data-{version}.0.0-py3-none-any.whl" for version in self.versions]
            self.answer("text/html", "".join(f'<a href="{name}">{name}</a>' for name in names))
        elif self.path.startswith("/api/v1/query?"):
            assert "ctfoundry_model" in self.path
            found = [{"metric": {"feature": feature}, "value": [0, "1"]} for feature in self.rings]
            self.answer("application/json", json.dumps({"status": "success", "data": {"result": found}}))
        else:
            self.send_error(404)

    def answer(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' output."""


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    require_orthanc()
    if STORESCU is None:
        pytest.skip("storescu not found: apt-get install dcmtk")
    server = Orthanc(tmp_path_factory.mktemp("orthanc"), nodes={})
    yield server
    server.kill()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    (folder / "checkout").mkdir()
    checkout = tiny(folder / "checkout")
    checkout.edit(lambda content: content["wholebody"]["cohort"].update(source="dicomweb"))
    checkout.git("commit", "-qam", "from the PACS")
    of = Platform(folder, checkout)
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{elsewhere.server_port}"
        pacs = {"URL": f"{orthanc.root}/dicom-web", "USER": USER, "PASSWORD": PASSWORD}
        told = {f"CTFOUNDRY_DICOMWEB_{name}": value for name, value in pacs.items()}
        pip = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": f"{address}/simple/", "PIP_FIND_LINKS": ""}
        key = {"CTFOUNDRY_PSEUDONYM_KEY": "of this hospital alone", "CTFOUNDRY_PROMETHEUS": address}
        with of.up(**told, **pip, **key):
            yield of
        elsewhere.shutdown()


def send(orthanc: Orthanc, folder: Path, number: int) -> None:
    """A study more, as a scanner sends it."""
    folder.mkdir()
    for place, image in enumerate(make_series(number, 12, 16)):
        (folder / f"{place:03d}.dcm").write_bytes(as_file(image))
    to = ["-aec", TITLE, "127.0.0.1", str(orthanc.dicom_port), "+sd", str(folder)]
    subprocess.run([str(STORESCU), *to], check=True, capture_output=True, timeout=120)


def runs(of: Platform, deployment: str) -> list[dict[str, Any]]:
    """Of a deployment, the newest first."""
    body = {
        "deployments": {"id": {"any_": [of.get(f"deployments/name/{deployment}")["id"]]}},
        "sort": "START_TIME_DESC",
    }
    return list(of.asked("POST", "flow_runs/filter", body))


def begun(of: Platform, begin: str, deployment: str = "retrain/wholebody", **parameters: Any) -> dict[str, Any]:
    """The run of ``deployment`` that an event of a run of ``begin`` started, once it has ended."""
    before = {run["id"] for run in runs(of, deployment)}
    state = of.run(begin, **parameters)
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed"), f"{state}\n{of.logs()}"
    new: list[str] = []

    def came() -> bool:
        new[:] = [run["id"] for run in runs(of, deployment) if run["id"] not in before]
        return bool(new)

    wait_until(came, RUN_S, f"a run of {deployment}")
    of.ended(new[0])
    return dict(of.get(f"flow_runs/{new[0]}"))


def plans(of: Platform) -> list[str]:
    """Pages of what a release would bring, the newest first."""
    body = {"artifacts": {"key": {"any_": ["plan-wholebody"]}}, "sort": "CREATED_DESC"}
    return [artifact["data"] for artifact in of.asked("POST", "artifacts/filter", body)]


def nothing_to_do(of: Platform) -> None:
    state = of.run("watch/wholebody")
    assert (state["type"], state["name"]) == ("COMPLETED", "NothingToDo"), f"{state}\n{of.logs()}"


def approve(of: Platform, command: str, run: str) -> str:
    """``ctfoundry approve``, or ``reject``."""
    done = of.checkout.run(
        "env",
        f"PREFECT_API_URL={of.api}",
        "python",
        "-m",
        "flows.cli",
        command,
        run,
        "--by",
        "anna",
        "--reason",
        "seen",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def waits(of: Platform, run: str) -> None:
    under_way = ("SCHEDULED", "PENDING", "RUNNING")
    wait_until(lambda: of.get(f"flow_runs/{run}")["state"]["type"] not in under_way, RUN_S, "the run waits")
    assert of.get(f"flow_runs/{run}")["state"]["name"] == "Suspended", of.logs()


def test_a_study_more_in_the_pacs_starts_a_release_and_nothing_new_starts_none(
    platform: Platform, orthanc: Orthanc, tmp_path: Path
) -> None:
    send(orthanc, tmp_path / "one", 1)
    state = platform.run("retrain/wholebody")
    assert state["message"].startswith("wholebody@v0.0.1: "), f"{state}\n{platform.logs()}"
    nothing_to_do(platform)
    send(orthanc, tmp_path / "two", 2)
    run = begun(platform, "watch/wholebody")
    assert run["state"]["message"].startswith("wholebody@v0.0.2: "), f"{run['state']}\n{platform.logs()}"
    page = plans(platform)[0]
    for told in (
        "| compared with | wholebody@v0.0.1 |",
        "| series new | 1 |",
        f"| {SERIES_GB:.3g} GB |",
        "cost, at most",
    ):
        assert told in page
    nothing_to_do(platform)


def test_beyond_a_bound_nothing_is_transferred_until_a_person_says_so(
    platform: Platform, orthanc: Orthanc, tmp_path: Path
) -> None:
    send(orthanc, tmp_path / "three", 3)
    run = platform.begin("retrain/wholebody", ask_above_gb=SERIES_GB / 2)
    waits(platform, run)
    assert "rejected by anna" in approve(platform, "reject", run)
    state = platform.ended(run)
    assert (state["name"], "rejected by anna: seen" in state["message"]) == ("Rejected", True), state
    run = platform.begin("retrain/wholebody", ask_above_gb=SERIES_GB / 2)
    waits(platform, run)
    assert "1 series new" in approve(platform, "approve", run)
    state = platform.ended(run)
    assert state["name"] == "Completed", f"{state}\n{platform.logs()}"
    run = platform.begin("retrain/wholebody", ask_above_gb=SERIES_GB / 2)  # nothing is new: nobody is asked
    assert platform.ended(run)["name"] == "NothingToDo"


def test_what_came_after_a_person_was_asked_is_asked_again(
    platform: Platform, orthanc: Orthanc, tmp_path: Path
) -> None:
    send(orthanc, tmp_path / "four", 4)
    run = platform.begin("retrain/wholebody", ask_above_gb=0.0)
    waits(platform, run)
    send(orthanc, tmp_path / "five", 5)
    approve(platform, "approve", run)
    wait_until(
        lambda: len({page for page in plans(platform) if "| series new | 2 |" in page}) == 1, RUN_S, "a new plan"
    )
    waits(platform, run)
    assert "2 series new" in approve(platform, "approve", run)
    state = platform.ended(run)
    assert state["name"] == "Completed", f"{state}\n{platform.logs()}"


def test_scans_unlike_trainings_start_a_release(platform: Platform) -> None:
    nothing_to_do(platform)
    Elsewhere.rings.append("slice_thickness")
    try:
        assert (
            begun(platform, "watch/wholebody")["state"]["name"] == "NothingToDo"
        )  # no scan has come that it could take
    finally:
        Elsewhere.rings.clear()


def test_a_release_that_was_not_reproduced_is_made_afresh(platform: Platform) -> None:
    clone = platform.clone("forges")
    last = platform.git("tag", "--sort=-version:refname").splitlines()[0]
    subprocess.run(["git", "checkout", "-q", last], cwd=clone, check=True)
    lock = yaml.safe_load((clone / "dvc.lock").read_text())
    lock["stages"]["bundle@wholebody"]["outs"][0]["md5"] = "0" * 32 + ".dir"
    (clone / "dvc.lock").write_text(yaml.safe_dump(lock))
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["commit", "-qam", "another bundle"], ["tag", "-am", "bundle", "wholebody@v0.1.0"],
                    ["push", "-q", "origin", "wholebody@v0.1.0"]):  # fmt: skip
        subprocess.run(["git", *who, *command], cwd=clone, check=True)
    before = {run["id"] for run in runs(platform, "retrain/wholebody")}
    state = platform.run("verify/release")
    assert state["name"] == "NotReproduced", f"{state}\n{platform.logs()}"
    wait_until(lambda: len(runs(platform, "retrain/wholebody")) > len(before), RUN_S, "a run")
    (run,) = [run for run in runs(platform, "retrain/wholebody") if run["id"] not in before]
    assert run["parameters"]["afresh"] is True
    assert platform.ended(run["id"])["message"].startswith("wholebody@v0.1.1: ")


def test_a_version_more_of_the_imaging_data_commons_starts_a_release_from_it(platform: Platform) -> None:
    newest = installed()

    def sampled(content: dict[str, Any]) -> None:
        cohort = content["wholebody"]["cohort"]
        cohort.update(source="idc")
        cohort["idc"].update(sample=5, idc_version=newest - 1)

    platform.checkout.edit(sampled)
    platform.checkout.git("commit", "-qam", "from the Imaging Data Commons")
    platform.checkout.git("push", "-q", "origin", "HEAD")
    state = platform.run("retrain/wholebody")
    assert state["type"] == "COMPLETED", f"{state}\n{platform.logs()}"
    Elsewhere.versions[:] = [newest - 1]
    nothing_to_do(platform)
    Elsewhere.versions.append(newest)
    run = begun(platform, "watch/wholebody")
    assert run["state"]["name"] == "Completed", f"{run['state']}\n{platform.logs()}"
    tag = run["state"]["message"].partition(":")[0]
    made = yaml.safe_load(platform.git("show", f"{tag}:params.yaml"))["wholebody"]["cohort"]
    assert made["idc"]["idc_version"] == newest
    nothing_to_do(platform)
