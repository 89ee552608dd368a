"""Mutated RTSTRUCT and SEG files end in labels or in one line: no traceback, no hang, no memory filled.

A few by default, the same each time. Many: ``CTFOUNDRY_FUZZ=5000 pytest tests/unit/test_ct_labels_fuzz.py``, from round
``CTFOUNDRY_FUZZ_FROM`` on; what fails is kept in ``CTFOUNDRY_FUZZ_KEEP``.
"""

from __future__ import annotations

import io
import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from label_files import contour, rectangle, scanned, segmentation, structures
from pydicom import DataElement, Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from components.ct.labels.onto_grid import read_labels
from components.ct.store import FloatArray, Volume
from components.errors import UserError

ROUNDS = int(os.environ.get("CTFOUNDRY_FUZZ", "120"))
FIRST = int(os.environ.get("CTFOUNDRY_FUZZ_FROM", "0"))
LIMIT_S = 20  # of computing: the machine may be busy with other things
MEMORY = 3 << 30  # more than before, at the most
ODD: tuple[Any, ...] = (
    None, "", "0", "-1", "1e308", "nan", "inf", "x" * 70, "1\\2\\3", "a\\b", "\\", "2147483648", "99999",
    "0.0000001", " ",
)  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of what is written here


class Hang(BaseException):
    """Not an Exception: nobody may catch it."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Volume, Dataset]]:
    """An RTSTRUCT of every sort of contour; SEG that form a grid, of every type, compressed, and that form none."""
    found: list[tuple[Volume, Dataset]] = []
    for name, shifts in (("even", None), ("uneven", dict.fromkeys(range(6, 12), 0.3))):
        scan = scanned(tmp_path_factory.mktemp(name), shifts, slices=12, matrix=32)
        ring = [contour(rectangle(i, (4.5, 20.5), (4.5, 20.5))) for i in scan.items[2:8]]
        ring += [contour(rectangle(i, (8.5, 12.5), (8.5, 12.5))) for i in scan.items[2:8]]
        spot = [contour(rectangle(scan.items[4], (22.5, 28.5), (2.5, 9.5)))]
        spot.append(contour(rectangle(scan.items[4], (22.5, 28.5), (2.5, 9.5))[:3], "POINT"))
        found.append((scan.volume, structures(scan.items[0], {"ring": ring, "spot": spot, "none": []})))
        masks = np.zeros((*scan.volume.hu.shape, 2), np.uint8)
        masks[3:8, 4:20, 6:14, 0] = masks[5:9, 22:30, 6:20, 1] = 1
        types = {"BINARY": np.uint8, "FRACTIONAL": np.float32, "LABELMAP": np.uint8}
        for kind in types:
            found.append((scan.volume, segmentation(scan.items, masks.astype(types[kind]), kind)))
        packed = segmentation(scan.items, masks.astype(np.uint8), "LABELMAP")
        packed.compress(RLELossless)
        found.append((scan.volume, packed))
    return found


def elements(dataset: Dataset, depth: int = 0) -> list[tuple[Dataset, DataElement]]:
    """All, of items too; of long sequences some."""
    found = []
    for element in dataset:
        found.append((dataset, element))
        if element.VR == "SQ" and depth < 8:
            for item in element.value[:6]:
                found += elements(item, depth + 1)
    return found


def change_value(dataset: Dataset, rng: random.Random) -> None:
    holder, element = rng.choice(elements(dataset))
    if element.VR == "SQ":
        items = list(element.value)
        how = rng.randrange(5)
        if how == 0 and items:
            items.pop(rng.randrange(len(items)))
        elif how == 1 and items:
            items.insert(rng.randrange(len(items)), rng.choice(items))
        elif how == 2:
            items = []
        elif how == 3:
            items.append(Dataset())
        else:
            rng.shuffle(items)
        holder[element.tag] = DataElement(element.tag, "SQ", Sequence(items))
        return
    if element.VR in ("OB", "OW", "OB or OW") or isinstance(element.value, bytes):
        value = bytes(element.value or b"")
        holder[element.tag] = DataElement(element.tag, element.VR, value[: rng.randrange(len(value) + 1)])
        return
    if element.VR in ("US", "UL", "SS", "SL", "FD", "FL"):
        holder[element.tag] = DataElement(element.tag, element.VR, rng.choice([0, 1, 2, 7, 255, 65535]))
        return
    odd = rng.choice(ODD)
    values = element.value
    if isinstance(values, pydicom.multival.MultiValue) and rng.random() < 0.6:
        text = [str(v) for v in values]
        how = rng.randrange(3)
        if how == 0:
            text[rng.randrange(len(text))] = str(rng.choice(ODD[2:8]))
        elif how == 1:
            text.pop()
        else:
            text.append("1.5")
        odd = "\\".join(text)
    plain = "" if odd is None else odd
    holder[element.tag] = pydicom.dataelem.RawDataElement(  # written as it stands: pydicom would refuse it
        element.tag, element.VR, len(plain), plain.encode(), 0, False, True
    )


def delete(dataset: Dataset, rng: random.Random) -> None:
    holder, element = rng.choice(elements(dataset))
    del holder[element.tag]


def encoded(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def damage(content: bytes, rng: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        at, size = rng.randrange(len(out)), rng.randrange(1, 9)
        how = rng.randrange(4)
        if how == 0:
            out[at : at + size] = rng.randbytes(size)
        elif how == 1:
            del out[at : at + size]
        elif how == 2:
            out[at:at] = out[max(0, at - 64) : at]
        else:
            del out[max(at, 132) :]
    return bytes(out)


def mutated(content: bytes, rng: random.Random) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    changes: list[Callable[[Dataset, random.Random], None]] = [change_value, change_value, delete]
    try:
        for _ in range(rng.randrange(1, 4)):
            rng.choice(changes)(dataset, rng)
        content = encoded(dataset)
    except Exception:  # no writer would write that
        return damage(content, rng)
    return damage(content, rng) if rng.random() < 0.3 else content


def outcome(path: Path, affine: FloatArray, shape: tuple[int, ...]) -> str:
    """Raises whatever else than a UserError, and Hang where it takes longer than allowed."""

    def hang(number: int, frame: Any) -> None:
        raise Hang(path.name)

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        labels = read_labels(path, affine, shape)
        assert labels.layers.shape[1:] == tuple(shape)
        assert all(0 <= s.covered <= 1 and s.voxels == labels.mask_of(s).sum() for s in labels.segments)
        said = ""
    except UserError as error:
        said = str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert not said or (said.startswith(f"labels {path.name}: ") and len(said.splitlines()) == 1)
    return "refused" if said else "labels"


def test_mutated_files_end_in_labels_or_in_one_line(sources: list[tuple[Volume, Dataset]], tmp_path: Path) -> None:
    originals = [(volume, encoded(dataset)) for volume, dataset in sources]
    path, seen = tmp_path / "odd.dcm", Counter[str]()
    for volume, content in originals:
        path.write_bytes(content)
        assert outcome(path, volume.affine, volume.hu.shape) == "labels", "unchanged, each is sound"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(FIRST, FIRST + ROUNDS):
        rng = random.Random(number)
        volume, content = originals[number % len(originals)]
        path.write_bytes(mutated(content, rng))
        try:
            seen[outcome(path, volume.affine, volume.hu.shape)] += 1
        except BaseException as error:
            kept = Path(os.environ.get("CTFOUNDRY_FUZZ_KEEP", tmp_path)) / f"{number}.dcm"
            kept.write_bytes(path.read_bytes())
            raise AssertionError(f"round {number}: {type(error).__name__}: {error}; kept in {kept}") from error
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < MEMORY, f"round {number}: {grown / 2**20:.0f} MiB"
    print(dict(seen))
    assert min(seen["labels"], seen["refused"]) > ROUNDS / 10, "mutations reach the readers, and are felt"
