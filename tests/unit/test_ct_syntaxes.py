"""Every way of storing the same pixels gives the same HU; what does not decode is named."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from phantom_plans import small
from pydicom.datadict import dictionary_VR
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG4HP41,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from components.ct.dicom import DecodeError, read_series
from components.sources.phantom.scanner import scan

# One slice of `phantom_plans.small("head")` at 64 x 64, as OpenJPH wrote it: nothing here can encode it.
HTJ2K = Path(__file__).parent / "data" / "phantom_htj2k.dcm"
PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1,
)  # fmt: skip
DCMTK = {
    "implicit": ["dcmconv", "+ti"],
    "big endian": ["dcmconv", "+tb"],
    "deflated": ["dcmconv", "+td"],
    "RLE": ["dcmcrle"],
    "JPEG lossless, selection value 1": ["dcmcjpeg", "+e1"],
    "JPEG lossless, process 14": ["dcmcjpeg", "+el"],
    "JPEG-LS": ["dcmcjpls", "+el"],
}


@pytest.fixture(scope="module")
def originals(ct_root: Path) -> list[Path]:
    """Three slices of a real series, stored as signed words of 16 bits."""
    return sorted((ct_root / "dicom" / "sts_001").glob("*.dcm"))[20:23]


@pytest.mark.parametrize("syntax", sorted(DCMTK))
def test_what_dcmtk_writes_is_read_exactly(originals: list[Path], syntax: str, tmp_path: Path) -> None:
    program, *options = DCMTK[syntax]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian package dcmtk)")
    for path in originals:
        subprocess.run([program, *options, str(path), str(tmp_path / path.name)], check=True, capture_output=True)
    np.testing.assert_array_equal(read_series(sorted(tmp_path.iterdir())).hu, read_series(originals).hu)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless]
)
def test_what_pydicom_writes_is_read_exactly(originals: list[Path], syntax: UID, tmp_path: Path) -> None:
    for path in originals:
        dataset = pydicom.dcmread(path)
        if syntax.is_encapsulated:
            dataset.compress(syntax)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(tmp_path / path.name)
    np.testing.assert_array_equal(read_series(sorted(tmp_path.iterdir())).hu, read_series(originals).hu)


def test_high_throughput_jpeg_2000_is_read_exactly(tmp_path: Path) -> None:
    scan(replace(small("head"), matrix=64, slices=1), tmp_path)
    native = read_series(sorted(tmp_path.glob("*.dcm")))
    np.testing.assert_array_equal(read_series([HTJ2K]).hu, native.hu)
    assert np.ptp(native.hu) > 1000


@pytest.fixture
def stored(originals: list[Path], tmp_path: Path) -> Callable[..., np.ndarray[Any, Any]]:
    """HU of one plane of stored words under a header of the test's own."""

    def read(words: np.ndarray[Any, Any], **values: Any) -> np.ndarray[Any, Any]:
        dataset = pydicom.dcmread(originals[0])
        dataset.Rows, dataset.Columns = words.shape
        dataset.PixelRepresentation = int(words.dtype.kind == "i")
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = words.tobytes()
        for name in PADDING:
            if name in dataset:
                delattr(dataset, name)
        for name, value in values.items():
            kind = ("SS" if value < 0 else "US") if name in PADDING else dictionary_VR(name)
            dataset.add_new(name, kind, value)
        dataset.save_as(tmp_path / "one.dcm")
        return read_series([tmp_path / "one.dcm"]).hu[0]

    return read


def test_words_are_read_as_the_header_says(stored: Callable[..., np.ndarray[Any, Any]]) -> None:
    signed = np.array([[-2000, -1, 0], [1, 2000, 30000]], dtype="<i2")
    np.testing.assert_array_equal(stored(signed), signed)
    unsigned = np.array([[0, 1, 1024], [4095, 33000, 33791]], dtype="<u2")
    np.testing.assert_array_equal(stored(unsigned, RescaleIntercept=-1024), unsigned.astype(int) - 1024)
    np.testing.assert_array_equal(stored(np.array([[65535]], "<u2")), [[32767]], "int16 ends there")
    halves = np.array([[0, 1, 3]], dtype="<u2")
    np.testing.assert_array_equal(stored(halves, RescaleSlope=0.5, RescaleIntercept=-10), [[-10, -10, -8]])


def test_twelve_bits_of_a_word(stored: Callable[..., np.ndarray[Any, Any]]) -> None:
    """The four bits above are an old overlay's in one file, and the sign in another."""
    words = np.array([[0xF123, 0x0FFF]], dtype="<u2")
    np.testing.assert_array_equal(stored(words, BitsStored=12, HighBit=11), [[0x123, 0xFFF]])
    np.testing.assert_array_equal(stored(words.view("<i2"), BitsStored=12, HighBit=11), [[0x123, -1]])
    np.testing.assert_array_equal(stored(words, BitsStored=12, HighBit=15), [[0xF12, 0x0FF]])


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_twelve_bits_of_a_word_in_every_syntax(originals: list[Path], syntax: UID, tmp_path: Path) -> None:
    """Overlay bits above the value, and signs that were not extended: old archives hold both, however stored."""
    words = np.resize(np.array([0xF123, 0x0FFF, 0x0800, 0x07FF, 0xA000, 0x0001], dtype="<u2"), (32, 48))
    values = (words & 0xFFF).astype(int)
    signed = np.where(values >= 0x800, values - 0x1000, values)
    read = {}
    for representation, high in ((0, 11), (1, 11), (0, 15)):
        dataset = pydicom.dcmread(originals[0])
        dataset.Rows, dataset.Columns, dataset.RescaleSlope, dataset.RescaleIntercept = *words.shape, 1, 0
        for name in PADDING:
            if name in dataset:
                delattr(dataset, name)
        store_words(dataset, words, syntax, tmp_path)
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, high, representation
        list(dataset.iterall())  # decoded, so that they can be written in another encoding
        dataset.set_original_encoding(syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
        dataset.save_as(tmp_path / "one.dcm")
        read[representation, high] = read_series([tmp_path / "one.dcm"]).hu[0]
    np.testing.assert_array_equal(read[0, 11], values)
    np.testing.assert_array_equal(read[1, 11], signed)
    if not syntax.is_encapsulated:  # a codestream's value lies lowest
        np.testing.assert_array_equal(read[0, 15], words >> 4)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_sign_that_a_codestream_of_twelve_bits_does_not_extend(
    originals: list[Path], syntax: UID, tmp_path: Path
) -> None:
    values = np.resize(np.array([0, 1, 2047, -2048, -1, -1000], dtype="<i2"), (32, 48))
    dataset = pydicom.dcmread(originals[0])
    dataset.Rows, dataset.Columns, dataset.RescaleSlope, dataset.RescaleIntercept = *values.shape, 1, 0
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.compress(syntax, (values & 0xFFF).astype("<u2"))
    dataset.PixelRepresentation = 1
    dataset.save_as(tmp_path / "one.dcm")
    np.testing.assert_array_equal(read_series([tmp_path / "one.dcm"]).hu[0], values)


def store_words(dataset: pydicom.Dataset, words: np.ndarray[Any, Any], syntax: UID, folder: Path) -> None:
    """Put words of 16 bits into ``dataset``, all bits kept."""
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    if syntax == JPEGLosslessSV1:  # GDCM writes it
        image = SimpleITK.GetImageFromArray(words[None])
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(folder / "gdcm.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(image)
        written = pydicom.dcmread(folder / "gdcm.dcm")
        assert written.file_meta.TransferSyntaxUID == syntax
        dataset["PixelData"] = written["PixelData"]
    elif syntax.is_encapsulated:
        dataset.compress(syntax, words)
    else:
        dataset.PixelData = words.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax


def test_monochrome1_is_a_way_to_show_not_another_value(stored: Callable[..., np.ndarray[Any, Any]]) -> None:
    words = np.array([[0, 1000, 2000]], dtype="<u2")
    shown = stored(words, PhotometricInterpretation="MONOCHROME1", RescaleIntercept=-1000)
    np.testing.assert_array_equal(shown, [[-1000, 0, 1000]])


def test_padding_is_air_whatever_its_sign(stored: Callable[..., np.ndarray[Any, Any]]) -> None:
    words = np.array([[-2000, -1500, 0, 40]], dtype="<i2")
    np.testing.assert_array_equal(stored(words, PixelPaddingValue=-2000), [[-1024, -1500, 0, 40]])
    both = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500}
    np.testing.assert_array_equal(stored(words, **both), [[-1024, -1024, 0, 40]])
    unsigned = np.array([[63536, 24, 1024]], dtype="<u2")
    np.testing.assert_array_equal(
        stored(unsigned, PixelPaddingValue=63536, RescaleIntercept=-1024), [[-1024, -1000, 0]]
    )
    np.testing.assert_array_equal(
        stored(unsigned, PixelPaddingValue=-2000, RescaleIntercept=-1024), [[-1024, -1000, 0]], "the writer's mistake"
    )


def test_each_slice_has_its_own_rescale(originals: list[Path], tmp_path: Path) -> None:
    expected = read_series(originals).hu
    for number, path in enumerate(originals):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = (dataset.pixel_array - 100 * number).astype("<i2").tobytes()
        dataset.RescaleIntercept = float(dataset.RescaleIntercept) + 100 * number
        dataset.save_as(tmp_path / path.name)
    np.testing.assert_array_equal(read_series(sorted(tmp_path.iterdir())).hu, expected)


@pytest.mark.parametrize("option", ["+te", "+ti", "+tb", "+td"])
def test_a_file_cut_short_is_named(originals: list[Path], option: str, tmp_path: Path) -> None:
    if shutil.which("dcmconv") is None:
        pytest.skip("dcmconv is not installed (Debian package dcmtk)")
    cut = tmp_path / "cut.dcm"
    subprocess.run(["dcmconv", option, str(originals[0]), str(cut)], check=True, capture_output=True)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    with pytest.raises(DecodeError, match=r"cut\.dcm: "):
        read_series([cut])


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_a_compressed_frame_of_noise_is_named(originals: list[Path], syntax: UID, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(originals[0])
    dataset.compress(syntax)
    dataset.PixelData = encapsulate([b"\x12\x34" * 500])
    dataset.save_as(tmp_path / "noise.dcm")
    with pytest.raises(DecodeError, match=r"noise\.dcm: pixels do not decode"):
        read_series([tmp_path / "noise.dcm"])


LIES = [
    {"Rows": 16}, {"Columns": 16}, {"BitsAllocated": 8}, {"SamplesPerPixel": 3}, {"Rows": 4096}, {"Columns": 4096},
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=str)
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_a_codestream_that_the_header_lies_about_is_refused_before_it_is_decoded(
    originals: list[Path], syntax: UID, lie: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders write as many samples as the codestream holds, into a buffer of the header's size."""
    dataset = pydicom.dcmread(originals[0])
    words = np.arange(200 * 300, dtype="<u2").reshape(200, 300)
    dataset.Rows, dataset.Columns = words.shape
    store_words(dataset, words, syntax, tmp_path)
    for name, value in lie.items():
        setattr(dataset, name, value)
    dataset.save_as(tmp_path / "lie.dcm")
    monkeypatch.setattr("dicomsdl.open", None)
    monkeypatch.setattr(pydicom, "dcmread", None)
    with pytest.raises(DecodeError, match=r"lie\.dcm: compressed pixels of 200 x 300 x 1 with 16 bits are not allowed"):
        read_series([tmp_path / "lie.dcm"])


@pytest.mark.parametrize("lie", [{"SamplesPerPixel": 3}, {"BitsAllocated": 8}, {"Rows": 16}], ids=str)
def test_rle_that_the_header_lies_about_is_refused(originals: list[Path], lie: dict[str, int], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(originals[0])
    dataset.compress(RLELossless)
    for name, value in lie.items():
        setattr(dataset, name, value)
    dataset.save_as(tmp_path / "lie.dcm")
    with pytest.raises(DecodeError, match=r"lie\.dcm: (pixels do not decode: 2 RLE segments|RLE of 39996 bytes)"):
        read_series([tmp_path / "lie.dcm"])


def test_deflated_pixels_that_end_early_are_named(originals: list[Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(originals[0])
    dataset.PixelData = dataset.PixelData[:1000]
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "short.dcm")
    with pytest.raises(DecodeError, match=r"short\.dcm: 1000 bytes of pixel data, its matrix needs \d+"):
        read_series([tmp_path / "short.dcm"])


def test_a_deflated_file_that_ends_before_its_pixels_do_is_named(originals: list[Path], tmp_path: Path) -> None:
    """The header states all of them, and the stream behind it is cut off."""
    dataset = pydicom.dcmread(originals[0])
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "cut.dcm")
    content = (tmp_path / "cut.dcm").read_bytes()
    begins = 144 + int.from_bytes(content[140:144], "little")  # behind the group of file meta information
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    inflated = zlib.decompress(content[begins:], wbits=-zlib.MAX_WBITS)[:-2000]
    (tmp_path / "cut.dcm").write_bytes(content[:begins] + packer.compress(inflated) + packer.flush())
    with pytest.raises(DecodeError, match=r"cut\.dcm: \d+ bytes of pixel data, its matrix needs \d+"):
        read_series([tmp_path / "cut.dcm"])


def test_an_empty_matrix_is_named(stored: Callable[..., np.ndarray[Any, Any]]) -> None:
    with pytest.raises(DecodeError, match=r"one\.dcm: a matrix of \(0, 1\) is not allowed"):
        stored(np.zeros((1, 1), "<i2"), Rows=0)


def test_a_film_is_refused(originals: list[Path], tmp_path: Path) -> None:
    dataset = pydicom.dcmread(originals[0])
    dataset.PixelData = encapsulate([bytes(1000)])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = MPEG4HP41
    dataset.save_as(tmp_path / "film.dcm")
    with pytest.raises(DecodeError, match=r"film\.dcm: pixels do not decode"):
        read_series([tmp_path / "film.dcm"])
