"""Scans that are named by UIDs: only where the doors are open, and never anything but UIDs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import UserError
from serving.limits import Limits
from serving.pacs import READS, STORES, Doors, fetch_series, referred, to_store
from serving.sniff import InputError
from tests.unit.small_pacs import PASSWORD, Pacs, make_series, serve

OPEN = {"pacs": {"reads": True, "stores": True}}
SHUT = {"pacs": {"reads": False, "stores": False}}


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacs]:
    """A PACS with one series, and this machine told how to reach it."""
    for made in serve(Pacs([make_series(1, instances=3)])):
        monkeypatch.setenv("CTFOUNDRY_DICOMWEB_URL", made.url)
        monkeypatch.setenv("CTFOUNDRY_DICOMWEB_USER", "ct")
        monkeypatch.setenv("CTFOUNDRY_DICOMWEB_PASSWORD", PASSWORD)
        yield made


def test_both_doors_are_shut_unless_the_environment_opens_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (READS, STORES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_URL", "http://127.0.0.1:1/dicom-web")
    assert Doors.from_environment() == Doors(False, False)
    monkeypatch.setenv(STORES, "1")
    assert Doors.from_environment() == Doors(False, True)
    monkeypatch.setenv(READS, "yes")
    with pytest.raises(UserError, match=f"{READS}: 'yes' is not allowed: 0 or 1"):
        Doors.from_environment()
    monkeypatch.setenv(READS, "1")
    monkeypatch.delenv("CTFOUNDRY_DICOMWEB_URL")
    with pytest.raises(UserError, match="CTFOUNDRY_DICOMWEB_URL: not set"):
        Doors.from_environment()


@pytest.mark.parametrize(
    "uid", ["", ".", "..", "1..2", "1.2/3", "1.2%2f", "1.2\n", "http://x", "1." * 33 + "1", "１.2"]
)
def test_what_is_no_uid_is_not_asked_for(uid: str) -> None:
    with pytest.raises(InputError, match="a DICOM UID") as caught:
        referred({"study": "1.2", "series": uid}, OPEN, ("scan",))
    assert caught.value.status == 400


def test_scans_are_named_by_field() -> None:
    query = {"study": "1.2", "series": "1.3", "other_study": "1.4", "other_series": "1.5"}
    assert referred(query, OPEN, ("scan", "other")) == {"scan": ["1.2", "1.3"], "other": ["1.4", "1.5"]}
    assert referred({}, SHUT, ("scan",)) == {}
    with pytest.raises(InputError, match="other_series is missing"):
        referred({"other_study": "1.2"}, OPEN, ("scan", "other"))
    with pytest.raises(InputError, match="reads no PACS") as caught:
        referred(query, SHUT, ("scan",))
    assert caught.value.status == 404


def test_only_dicom_is_stored_and_only_where_it_may_be() -> None:
    assert not to_store({}, SHUT, "dicom")
    assert to_store({"store": "true"}, OPEN, "dicom")
    for query, model, form, status in (
        ({"store": "true"}, OPEN, "json", 400),
        ({"store": "1"}, OPEN, "dicom", 400),
        ({"store": "true"}, SHUT, "dicom", 404),
    ):
        with pytest.raises(InputError) as caught:
            to_store(query, model, form)
        assert caught.value.status == status


def test_a_series_comes_whole_or_is_one_line(pacs: Pacs, tmp_path: Path) -> None:
    study, series = "1.2.826.5.1", "1.2.826.6.1"
    assert fetch_series(study, series, tmp_path / "all", Limits()) == {"instances": 3}
    assert len(list((tmp_path / "all").iterdir())) == 3

    def refused(status: int, says: str, series: str = series, **limits: int) -> None:
        with pytest.raises(InputError, match=says) as caught:
            fetch_series(study, series, tmp_path / says, Limits(**limits))
        assert caught.value.status == status

    refused(413, "a series of 3 files is too large: at most 2", files=2)
    refused(413, "a series of more than 1000 bytes", body_bytes=1000)
    refused(404, "no such series", series="1.2.826.6.9")
    pacs.fault = "missing"
    refused(502, "1 missing")
    pacs.fault = "401"
    refused(502, "access denied")
