"""The dicomweb source against a small PACS: everything is listed, the bytes are right, every fault is one line."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
import ssl
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydicom.uid import DeflatedExplicitVRLittleEndian

from components.cohort.config import CohortConfig
from components.errors import UserError
from components.files import DiskFullError
from components.settings import ParamsError, load_stage, parse, read_yaml
from components.sources import raw
from components.sources.config import TransferConfig
from components.sources.dicomweb import DicomwebSource
from tests.unit.small_pacs import PASSWORD, Pacs, as_file, make_series, serve

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
QUICK = TransferConfig(attempts=1, backoff_s=0.0, stall_s=1.0, slowest_mb_s=0.1, connections=1)
PATIENT = QUICK.model_copy(update={"stall_s": 60.0})  # for what takes a busy machine seconds, and must not end in time


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secret: str) -> Iterator[Pacs]:
    """Seven CT series of one to seven instances."""
    monkeypatch.chdir(tmp_path)
    for served in serve(Pacs([make_series(n, n) for n in range(1, 8)])):
        configure(monkeypatch, served)
        yield served


def configure(monkeypatch: pytest.MonkeyPatch, pacs: Pacs) -> None:
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_URL", pacs.url)
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_USER", "ct")
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_PASSWORD", PASSWORD)


def source(**asked: Any) -> DicomwebSource:
    config = load_stage(CohortConfig, "head", "cohort", ROOT / "params.yaml")
    chosen = {"body_parts": None, "min_instances": 1, "page": 3} | asked
    return DicomwebSource(config.model_copy(update={"dicomweb": config.dicomweb.model_copy(update=chosen)}), "head")


def row_of(pacs: Pacs, number: int) -> dict[str, Any]:
    listed = source(page=100).list_series(frozenset()).series
    row = next(vars(s) for s in listed if s.files == number)
    return row | {"source": "dicomweb"}


def fetch(row: dict[str, Any], folder: Path = Path("raw"), transfer: TransferConfig = QUICK) -> list[bytes]:
    raw.fetch(source(), row, [], folder, transfer)
    return [path.read_bytes() for path in raw.data_files(folder)]


def sizes(**asked: Any) -> list[int]:
    return sorted(series.files for series in source(**asked).list_series(frozenset()).series)


def test_a_listing_is_sorted_the_same_each_time_and_names_nobody(pacs: Pacs) -> None:
    first = source().list_series(frozenset())
    pacs.series.reverse()
    assert source().list_series(frozenset()) == first
    assert [s.series for s in first.series] == sorted(s.series for s in first.series)
    assert "MRN" not in repr(first)
    assert "1.2.826" not in repr(first)


@pytest.mark.parametrize("habit", [
    {"cap": 2},
    {"rotates": True},
    {"rotates": True, "cap": 2},
    {"offset": False, "page": 100},
    {"heeds_filters": False},
    {"leaves_out": ("NumberOfSeriesRelatedInstances",)},
    {"leaves_out": ("PatientID", "StudyDate", "BodyPartExamined")},
    {"leaves_out": ("StudyInstanceUID", "SeriesInstanceUID")},
    {"busy": 1},
    {"warns": True},
    {"warns": True, "cap": 2},
    {"warns": True, "total": 3, "warning": '299 pacs: "The fuzzymatching parameter is not supported."', "series": 3},
    {"lower_case": True},
])  # fmt: skip
def test_every_series_is_listed_whatever_the_habits_of_the_pacs(pacs: Pacs, habit: dict[str, Any]) -> None:
    asked = {"page": habit.pop("page", 3), "body_parts": ("HEAD",), "study_dates": ("2020-01-01", "2020-12-31")}
    expected = source(**asked).list_series(frozenset())
    pacs.series.append(make_series(8, Modality="MR"))
    count = habit.pop("series", 7)
    for name, value in habit.items():
        setattr(pacs, name, value)
    listing = source(**asked).list_series(frozenset())
    assert len(listing.series) == count
    assert set(map(repr, listing.series)) <= set(map(repr, expected.series))


def test_a_pacs_that_ignores_the_offset_is_told_where_more_may_be_behind(pacs: Pacs) -> None:
    pacs.offset = False
    with pytest.raises(UserError, match="ignores the offset of a query and answers the same 3 series each time"):
        source().list_series(frozenset())


def test_a_pacs_that_has_more_than_it_gives_is_not_taken_for_complete(pacs: Pacs) -> None:
    pacs.total, pacs.warns = 5, True
    with pytest.raises(UserError, match="says that it has more than 5 series, and does not give them; raise its limit"):
        source().list_series(frozenset())
    pacs.total, pacs.offset, pacs.cap = 10**6, False, 5
    with pytest.raises(UserError, match="ignores the offset of a query and answers the same 5 series each time"):
        source(page=100).list_series(frozenset())


def test_what_a_pacs_leaves_out_is_asked_for_several_at_a_time(pacs: Pacs) -> None:
    pacs.series = [make_series(n, 1) for n in range(1, 41)]
    expected = source(page=100).list_series(frozenset()).series
    assert pacs.most_at_once == 1
    pacs.leaves_out, pacs.delay, pacs.asked = ("NumberOfSeriesRelatedInstances",), 0.05, []
    assert source(page=100).list_series(frozenset()).series == expected
    assert len(pacs.asked) > 80, "each series is asked for, to its end"
    assert 4 <= pacs.most_at_once <= 8


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_the_funnel_accounts_for_every_series(pacs: Pacs) -> None:
    pacs.series += [make_series(8, BodyPartExamined="CHEST"), make_series(9, StudyDate="20190101"),
                    make_series(10, SeriesInstanceUID="../x?y"), make_series(11, BodyPartExamined="")]  # fmt: skip
    listing = source(body_parts=("HEAD",), study_dates=("2020-01-01", "2021-01-01"), min_instances=3).list_series(
        frozenset()
    )
    assert listing.selection is not None
    assert [step["series"] for step in listing.selection["funnel"]] == [11, 10, 9, 7, 5]
    with pytest.raises(UserError, match=r"no CT series is left .*at least 99 instances: 0"):
        source(min_instances=99).list_series(frozenset())


def test_fetched_files_are_the_very_bytes_of_the_pacs(pacs: Pacs) -> None:
    row = row_of(pacs, 7)
    for fault in ("", "no length", "chunked"):
        pacs.fault = fault
        assert fetch(row, Path(f"raw{fault}")) == [as_file(image) for image in pacs.series[6]]


@pytest.mark.parametrize("habit", [
    {"preamble": b"This is a message with several parts in MIME format.\r\n--"},
    {"epilogue": b"\r\n" + bytes(400)},
    {"epilogue": b"\r\nOf this there may be much, even\r\n--edge\r\n\r\nlike a part" + bytes(300_000)},
    {"boundary": "DICOM DATA BOUNDARY"},
    {"boundary": "=_(a):b?c+d/e,f.'g'"},
])  # fmt: skip
def test_what_stands_round_the_parts_of_an_answer_is_left_out(pacs: Pacs, habit: dict[str, Any]) -> None:
    row = row_of(pacs, 7)
    for name, value in habit.items():
        setattr(pacs, name, value)
    assert fetch(row) == [as_file(image) for image in pacs.series[6]]


@pytest.mark.parametrize(("fault", "said"), [
    ("missing", "sent 6 instances where it lists 7: 1 missing, 0 not listed, 0 sent again"),
    ("extra", "sent 8 instances where it lists 7: 0 missing, 1 not listed, 0 sent again"),
    ("twice", "sent 8 instances where it lists 7: 0 missing, 0 not listed, 1 sent again"),
    ("no DICOM", "its answer is not multipart DICOM"),
    ("cut", "the connection broke off"),
    ("cut, chunked", "the connection broke off"),
    ("cut, no length", r"the connection broke off after \d+ bytes"),
    ("stalls", "no byte for 1 s"),
    ("drips", r"transfer too slow: \d+ bytes in \d s; at least 0.1 MB/s is expected"),
    ("login page", "its answer is no DICOM JSON"),
    ("401", r"access denied \(401\); check CTFOUNDRY_DICOMWEB_USER"),
    ("403", r"access denied \(403\)"),
    ("404", r"not found \(404\)"),
    ("500", r"failed \(500\)"),
])  # fmt: skip
def test_a_fault_is_one_line_and_nothing_half_done_stays(
    pacs: Pacs, caplog: pytest.LogCaptureFixture, fault: str, said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    row = row_of(pacs, 7)
    pacs.fault = fault
    with pytest.raises(UserError, match=said) as caught:
        fetch(row)
    assert not Path("raw").exists()
    assert list(Path().glob(".raw*")) == []
    for text in (str(caught.value), caplog.text):
        assert "1.2.826" not in text
        assert PASSWORD not in text
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_answers_are_taken(pacs: Pacs, encoding: str) -> None:
    expected = source().list_series(frozenset())
    pacs.encoding = encoding
    assert source().list_series(frozenset()) == expected
    assert fetch(row_of(pacs, 7)) == [as_file(image) for image in pacs.series[6]]


def peak(said: str, function: Callable[[], Any]) -> int:
    """Bytes that a call takes at most, which is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=said) as caught:
            function()
        assert "\n" not in str(caught.value)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_listing_that_inflates_without_end_is_given_up(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr("components.sources.pacs.LISTING_BYTES", 4 * MIB, raising=False)
    row = row_of(pacs, 7)
    pacs.encoding, pacs.bomb = encoding, "listing"
    said = "PACS: answers a query with more than 4194304 bytes, which is not allowed"
    for asks in (lambda: source().list_series(frozenset()), source().check, lambda: fetch(row, transfer=PATIENT)):
        assert peak(said, asks) < 32 * MIB


@pytest.mark.parametrize(("bomb", "of_series", "said"), [
    ("before", 16, "sends a series of more than 16777216 bytes"),
    ("parts", 16, "sends an instance of more than 4194304 bytes"),
    ("parts", 2, "sends a series of more than 2097152 bytes"),
    ("bare", 16, "sends more than 4194304 bytes"),
])  # fmt: skip
def test_a_series_that_inflates_without_end_is_given_up(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, bomb: str, of_series: int, said: str
) -> None:
    monkeypatch.setattr("components.sources.pacs.INFLATED_BYTES", 4 * MIB, raising=False)
    monkeypatch.setattr("components.sources.pacs.SERIES_BYTES", of_series * MIB, raising=False)
    row = row_of(pacs, 7)
    pacs.encoding, pacs.bomb = "gzip", bomb
    assert peak(f"PACS: {said}, which is not allowed", lambda: fetch(row, transfer=PATIENT)) < 32 * MIB
    assert not Path("raw").exists()


def test_a_deflated_instance_is_kept_as_it_is_and_never_inflates_without_end(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.sources.dicomweb.INFLATED_BYTES", 4 * MIB, raising=False)
    row = row_of(pacs, 1)
    (image,) = pacs.series[0]
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pacs.files = [as_file(image)]
    assert fetch(row) == pacs.files
    image.add_new(0xFFFCFFFC, "OB", bytes(64 * MIB))
    pacs.files = [as_file(image)]
    said = "PACS: of an instance that it sends, deflated data of more than 4194304 bytes are not allowed"
    assert peak(said, lambda: fetch(row, Path("bomb"), PATIENT)) < 32 * MIB


def test_a_series_that_shrank_since_the_cohort_is_told(pacs: Pacs) -> None:
    row = row_of(pacs, 7)
    pacs.series[6].pop()
    with pytest.raises(UserError, match="lists 6 instances of the series, 7 when the cohort was made"):
        fetch(row)


def test_the_map_is_private_and_made_again_where_it_is_missing(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = row_of(pacs, 7)
    folder = tmp_path / ".ctfoundry" / "dicomweb"
    assert folder.stat().st_mode & 0o077 == 0
    (folder / "head.parquet").unlink()
    assert len(fetch(row)) == 7
    (folder / "head.parquet").unlink()
    monkeypatch.chdir(tmp_path / ".ctfoundry")  # as another checkout
    source().check()
    assert Path(".ctfoundry/dicomweb/head.parquet").is_file()


def test_a_pseudonym_that_nobody_bears_is_told_without_asking_each_time(pacs: Pacs) -> None:
    row = row_of(pacs, 7) | {"location": "s0123456789abcdef"}
    for number in range(3):
        with pytest.raises(UserError, match="lists no CT series of this pseudonym"):
            fetch(row)
        if not number:
            asked = len(pacs.asked)
    assert len(pacs.asked) == asked


def test_a_dead_pacs_and_a_wrong_password_are_told_in_seconds(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_PASSWORD", "guessed")
    with pytest.raises(UserError, match=r"access denied \(401\)"):
        source().check()
    with socket.socket() as nobody:  # has the port, but does not listen
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("CTFOUNDRY_DICOMWEB_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}/dicom-web")
        with pytest.raises(UserError, match="refuses connections"):
            source().check()
    assert time.monotonic() - begin < 10


def test_a_port_where_something_else_listens_is_told(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            with other.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        Thread(target=greet, daemon=True).start()
        monkeypatch.setenv("CTFOUNDRY_DICOMWEB_URL", f"http://127.0.0.1:{other.getsockname()[1]}/dicom-web")
        with pytest.raises(UserError, match="answers in no HTTP; is the port of CTFOUNDRY_DICOMWEB_URL right"):
            source().check()


def test_a_token_stands_in_for_the_password(pacs: Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs.token = "abc.def"
    monkeypatch.delenv("CTFOUNDRY_DICOMWEB_USER")
    monkeypatch.delenv("CTFOUNDRY_DICOMWEB_PASSWORD")
    monkeypatch.setenv("CTFOUNDRY_DICOMWEB_TOKEN", pacs.token)
    assert sizes() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("variable", "value", "said"), [
    ("URL", "", "CTFOUNDRY_DICOMWEB_URL: not set"),
    ("URL", "pacs.local", "CTFOUNDRY_DICOMWEB_URL: not an address"),
    ("URL", "http://[::1/x", "CTFOUNDRY_DICOMWEB_URL: not an address"),
    ("URL", "http://127.0.0.1:dicom/x", "CTFOUNDRY_DICOMWEB_URL: not an address"),
    ("URL", "http://127.0.0.1:99999/x", "CTFOUNDRY_DICOMWEB_URL: not an address"),
    ("URL", "http://ct:hidden@127.0.0.1/", "holds a user name"),
    ("TOKEN", "abc", "set user and password, or the token, or none"),
    ("PASSWORD", "", "set user and password, or the token, or none"),
    ("CA", "nowhere.pem", "CTFOUNDRY_DICOMWEB_CA: not a file"),
])  # fmt: skip
def test_a_wrong_setting_is_one_line(
    pacs: Pacs, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"CTFOUNDRY_DICOMWEB_{variable}", value)
    with pytest.raises(UserError, match=said) as caught:
        source().check()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("days", [["2020-02-30", "2020-03-01"], ["2021-01-01", "2020-01-01"], ["20200101", "20210101"]])
def test_study_dates_are_two_days_in_order(days: list[str]) -> None:
    block = read_yaml(ROOT / "params.yaml")["head"]["cohort"]
    with pytest.raises(ParamsError, match=r"study_dates: .* is not allowed: first and last day"):
        parse(CohortConfig, block | {"dicomweb": block["dicomweb"] | {"study_dates": days}}, "head.cohort")


@pytest.mark.usefixtures("secret")
def test_a_sites_own_authority_is_trusted_where_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hospital")])
    day = datetime.datetime(2020, 1, 1)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(day).not_valid_after(day + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    Path("ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    Path("key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("ca.pem", "key.pem")
    for pacs in serve(Pacs([make_series(1)]), context):
        configure(monkeypatch, pacs)
        with pytest.raises(
            UserError, match=r"certificate is not trusted \(self-signed certificate\); set CTFOUNDRY_DIC"
        ):
            source().check()
        monkeypatch.setenv("CTFOUNDRY_DICOMWEB_CA", "ca.pem")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/hostname")  # of other programs
        assert sizes() == [3]


def test_a_full_disk_stops_the_stage(pacs: Pacs) -> None:
    pacs.series.append(make_series(8, 20, side=256))
    row, small = row_of(pacs, 20), Path("small")
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        with pytest.raises(DiskFullError, match="disk: full"):
            fetch(row, small / "raw")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
