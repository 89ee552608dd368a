"""What libraries quote of a patient's header reaches no log of any reader of the product."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from components.ct.headers import TAGS
from tests.header_fuzz import EXPLICIT, IMPLICIT, Element, File, encoded, item, sources, with_element, written

ROOT = Path(__file__).resolve().parents[2]
UID, NAME, DATE = (
    b"1.2.840.10008.055.4711",
    b"GEHEIM^PATIENTIN",
    b"19551131X",
)  # all three invalid, so that all are quoted
# Every reader of the product over every file, with the logging of a stage.
READ_ALL = """
import logging, sys, warnings
from pathlib import Path
import numpy as np
import components
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
if sys.argv[2] == "loud":
    warnings.resetwarnings()
    logging.getLogger("pydicom").propagate = True
from components.ct.headers import measure_series, read_instance
from components.sources.dicom_tree import list_tree
from components.cohort.config import CohortConfig
from components.ct.labels.onto_grid import read_labels
from components.errors import UserError
from components.settings import load_stage
from components.ct.dicom import read_series
from serving.limits import Limits
from serving.reading import read_upload
folder = Path(sys.argv[1])
files = sorted(folder.glob("*.dcm"))
list_tree(folder, load_stage(CohortConfig, "wholebody", "cohort"), workers=1)
def attempt(function, *arguments):
    try:
        function(*arguments)
    except UserError as error:
        print(error)
for path in files:
    with path.open("rb") as stream:
        print(measure_series([read_instance(stream, path.name, path.stat().st_size)])["missing_tags"])
    attempt(read_series, [path])
    attempt(read_series, [path], True)
    attempt(read_labels, path, np.eye(4), (2, 2, 2))
attempt(read_upload, folder / "a.zip", "zip", Limits())
"""


def odd(good: File) -> dict[str, bytes]:
    """Files whose headers hold a UID, a name and a date that pydicom has something to say about."""
    files = {}
    for number, keyword in enumerate(sorted({*TAGS, "PatientName", "PatientBirthDate", "AcquisitionDate"})):
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None
        vr, value = pydicom.datadict.dictionary_VR(tag).encode()[:2], (UID, NAME, DATE)[number % 3]
        element = Element(int(tag), vr, value + b" " * (len(value) % 2))
        deep = Element(0x00081115, b"SQ", item(encoded(element, EXPLICIT), False, EXPLICIT))
        file = with_element(good, deep if number % 5 == 0 else element)
        charset = with_element(file, Element(0x00080005, b"CS", value[:16]))
        files[keyword] = written((file, charset, replace(file, syntax=IMPLICIT, bare=True))[number // 3 % 3])
    return files


def said(folder: Path, how: str) -> str:
    command = [sys.executable, "-c", READ_ALL, str(folder), how]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout + result.stderr


def test_no_reader_repeats_a_header(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (good, _) = sources(tmp_path / "good")
    with zipfile.ZipFile(tmp_path / "files" / "a.zip", "w") as archive:
        for name, content in odd(good).items():
            (tmp_path / "files" / f"{name}.dcm").write_bytes(content)
            archive.writestr(f"{name}.dcm", content)
    planted = re.compile("055.4711|GEHEIM|PATIENTIN|19551131")
    loud = set(planted.findall(said(tmp_path / "files", "loud")))
    assert loud >= {"055.4711", "GEHEIM", "19551131"}, "the files would be quoted"
    assert planted.findall(said(tmp_path / "files", "as it is")) == []


NIFTI = """
import logging, sys
from pathlib import Path
from components.ct.nifti import measure_nifti
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
print(measure_nifti(Path(sys.argv[1])).get("unreadable_files"))
"""


def test_a_broken_nifti_is_a_figure_of_its_row_and_no_line_of_nibabel(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.diag([1.0, 1.0, 2.0, 1.0])), path)
    content = bytearray(path.read_bytes())
    content[70:72] = (999).to_bytes(2, "little")  # datatype: of no kind of numbers (nifti1.h)
    path.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", NIFTI, path], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n"
    assert "999" not in done.stderr
    assert "nibabel" not in done.stderr


READERS = re.compile(r"^\s*(?:import|from) (?:pydicom|highdicom|dicomsdl|dicomweb_client|SimpleITK)\b", re.MULTILINE)


@pytest.mark.parametrize("room", ["serving", "flows"])
def test_what_reads_dicom_elsewhere_is_silenced_too(room: str) -> None:
    """The silence begins where ``components`` is imported."""
    for path in sorted((ROOT / room).rglob("*.py")):
        text = path.read_text()
        assert not READERS.search(text) or re.search(r"^(?:from|import) components\b", text, re.MULTILINE), path.name
