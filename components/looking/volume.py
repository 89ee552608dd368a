"""A volume as people look at it: three planes through a point, under CT windows, masks over it; its facts; NIfTI out.

Reads the store's volumes, NIfTI, and folders of one DICOM series alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from components.ct.apart import volume_of
from components.ct.headers import measure_series
from components.ct.labels.onto_grid import NIFTI_SUFFIXES, Labels, write_labels
from components.ct.nifti import measure_nifti, read_nifti
from components.ct.origin import Origin
from components.ct.standardise import straighten, tilt_degrees
from components.ct.store import FloatArray, Int16Array, StoredVolume, Volume, voxel_of
from components.errors import UserError
from components.files import replacing, write_json
from components.looking.folder import read_folder

# Level and width in HU, as radiologists name them.
WINDOWS = {"soft": (40.0, 400.0), "lung": (-600.0, 1500.0), "bone": (400.0, 1800.0), "brain": (40.0, 80.0)}
# Plane: axis of RAS it is cut across, axes along the picture (right, up), letters at its left, right, top and bottom.
# The patient's right is at the left of the picture, anterior at the left of the sagittal one, as on a workstation.
PLANES = {
    "axial": (2, (0, 1), "RLAP"),
    "coronal": (1, (0, 2), "RLSI"),
    "sagittal": (0, (1, 2), "APSI"),
}
MASK_COLOURS = ListedColormap(["#ff3b30", "#34c759", "#0a84ff", "#ffd60a", "#bf5af2", "#64d2ff", "#ff9f0a", "#ac8e68"])
DOTS_PER_INCH = 110
TITLE_INCHES = 0.3  # over each row of planes
ALLOWED = "a .b2nd, .nii or .nii.gz file, a folder of one DICOM series"


@dataclass(frozen=True)
class Opened:
    """A volume with what is known of it.

    Attributes:
        name: for titles and file names.
        volume: voxels and affine, on a grid of right angles: the slices of a tilted gantry are straightened.
        facts: label to text, beyond what the voxels say.
        origin: of which scan it is, as far as that is known.
        measured: of the headers, as acquisition takes them; nothing of a stored volume, which was judged.
    """

    name: str
    volume: Volume
    facts: dict[str, str]
    origin: Origin = field(default_factory=Origin)
    measured: dict[str, Any] = field(default_factory=dict)


def find(reference: str, line: str) -> Path:
    """A path that exists, or the stored volume of a series' key.

    Raises:
        UserError: neither.
    """
    path = Path(reference)
    if reference and path.exists():  # pathlib takes an empty name for the folder that one is in
        return path
    stored = sorted(Path("data", line, "preprocess").glob(f"*/volumes/{path.name}.b2nd"))
    if not stored:
        raise UserError(
            f"volume {reference!r}: no such file or folder, and no such series in data/{line}/preprocess; "
            f"allowed: a series' key, {ALLOWED}"
        )
    return stored[0]


def open_volume(path: Path, only_largest_stack: bool = False) -> Opened:
    """Open what lies in ``path``.

    Args:
        path: a stored volume, a NIfTI, or a folder with one CT series, whatever else lies in it.
        only_largest_stack: of a series that holds more than one stack; otherwise all images must form one.

    Raises:
        UserError: there is no volume in it.
    """
    name = path.name.removesuffix(".b2nd").removesuffix(".gz").removesuffix(".nii")
    if path.is_dir():
        series = read_folder(path, only_largest_stack)
        told = {"kind": "DICOM series"}
        if series.left_out:
            told["files left out"] = ", ".join(f"{count} {reason}" for reason, count in series.left_out.items())
        return _straight(Opened(name, series.volume, told, series.origin, series.measured))
    if path.name.endswith(NIFTI_SUFFIXES):
        volume = volume_of(lambda: read_nifti(path), path.name)
        measured = {**measure_series([]), **measure_nifti(path)}
        return _straight(Opened(name, volume, {"kind": "NIfTI"}, measured=measured))
    if path.suffix != ".b2nd":
        raise UserError(f"volume {path.name}: {path.suffix or 'no suffix'} is not allowed: {ALLOWED}")
    return _stored(path, name)


def _stored(path: Path, name: str) -> Opened:
    try:
        stored = StoredVolume(path)
    except ValueError as error:
        raise UserError(str(error)) from None
    volume = stored.read()
    known = {key: str(stored.provenance.get(key, "")) for key in ("frame", "patient", "series", "source")}
    grid = stored.provenance.get("grid", {})
    facts = {
        "kind": "stored volume",
        "source": known.pop("source"),
        "grid asked for": f"{grid.get('orientation', '')} {grid.get('spacing_mm', '')}",
        "bytes on disk": f"{path.stat().st_size:,} (voxels {volume.hu.nbytes:,})",
    }
    return Opened(name, volume, facts, Origin(**known))


def _straight(opened: Opened) -> Opened:
    """Without the shear of a tilted gantry, which readers of NIfTI refuse, and which a picture cannot show."""
    straight = straighten(opened.volume)
    if straight is opened.volume:
        return opened
    tilt = f"{tilt_degrees(opened.volume.affine):.1f} degrees, undone: slices moved within their planes"
    return replace(opened, volume=straight, facts={**opened.facts, "gantry tilt": tilt})


def facts(opened: Opened) -> dict[str, str]:
    """Label to text: grid, place and HU of a volume."""
    volume = opened.volume
    percent = np.percentile(volume.hu, [1, 50, 99])
    low, high = _corners(volume)
    return {
        **opened.facts,
        "shape": " x ".join(map(str, volume.hu.shape)),
        "orientation": "".join(nib.orientations.aff2axcodes(volume.affine)),
        "spacing mm": " x ".join(f"{mm:.4g}" for mm in volume.spacing),
        "size mm": " x ".join(f"{n * mm:.1f}" for n, mm in zip(volume.hu.shape, volume.spacing, strict=True)),
        "first voxel mm (RAS)": " ".join(f"{v:.3f}" for v in volume.affine[:3, 3]),
        "reaches mm (RAS)": ", ".join(f"{a} {lo:.1f} to {hi:.1f}" for a, lo, hi in zip("RAS", low, high, strict=True)),
        "HU": f"{volume.hu.min()} to {volume.hu.max()}, percentiles 1/50/99: " + "/".join(f"{p:.0f}" for p in percent),
    }


def _corners(volume: Volume) -> tuple[FloatArray, FloatArray]:
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in volume.hu.shape])).reshape(3, -1).T
    corners = ends @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return corners.min(axis=0), corners.max(axis=0)


def draw(
    opened: Opened,
    target: Path,
    windows: tuple[str, ...] = ("soft",),
    at_mm: tuple[float, float, float] | None = None,
    mask: npt.NDArray[np.int32] | None = None,
) -> None:
    """Write a PNG of three planes, a row per window.

    Args:
        opened: the volume.
        target: PNG.
        windows: names in :data:`WINDOWS`.
        at_mm: RAS point that the planes pass; None takes the mask's centre, or else the volume's.
        mask: labels on the volume's grid.

    Raises:
        UserError: ``at_mm`` lies outside.
    """
    figure = picture(opened, windows, at_mm, mask)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png", facecolor="black", metadata={"Software": None})


def picture(
    opened: Opened,
    windows: tuple[str, ...],
    at_mm: tuple[float, float, float] | None,
    mask: npt.NDArray[np.int32] | None,
) -> Figure:
    """What :func:`draw` writes."""
    hu, affine = upright(opened.volume)
    turn = nib.orientations.io_orientation(opened.volume.affine)
    labels = None if mask is None else nib.orientations.apply_orientation(mask, turn)
    centre = _place(affine, hu.shape, at_mm, labels)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    size = np.array(hu.shape) * spacing
    widths = [float(size[along[0]]) for _, along, _ in PLANES.values()]
    tallest = float(max(size[along[1]] for _, along, _ in PLANES.values()))
    width = 11.0
    row_inches = TITLE_INCHES + width * tallest / sum(widths)
    figure = Figure(figsize=(width, 0.5 + len(windows) * row_inches), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(windows), 3, squeeze=False, gridspec_kw={"width_ratios": widths})
    for row, window in zip(axes, windows, strict=True):
        level, span = WINDOWS[window]
        for axis, (plane, (across, along, letters)) in zip(row, PLANES.items(), strict=True):
            aspect = spacing[along[1]] / spacing[along[0]]
            show = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}
            axis.imshow(cut(hu, across, centre), cmap="gray", vmin=level - span / 2, vmax=level + span / 2, **show)
            if labels is not None:
                plane_labels = cut(labels, across, centre)
                coloured = np.where(plane_labels > 0, (plane_labels - 1) % MASK_COLOURS.N + 1, 0)
                shown = np.ma.masked_equal(coloured, 0)
                axis.imshow(shown, cmap=MASK_COLOURS, vmin=1, vmax=MASK_COLOURS.N, alpha=0.45, **show)
            millimetre = float((affine[:3, :3] @ centre + affine[:3, 3])[across])
            axis.set_title(f"{plane} {'RAS'[across]} {millimetre:.0f} mm, {window}", color="white", fontsize=9)
            _letter(axis, letters)
    figure.suptitle(opened.name, color="white", fontsize=10)
    figure.tight_layout()
    return figure


def upright(volume: Volume) -> tuple[Int16Array, FloatArray]:
    """Voxels with axes turned to right, anterior, superior, as near as whole turns can; and their affine."""
    turn = nib.orientations.io_orientation(volume.affine)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.hu.shape)
    return nib.orientations.apply_orientation(volume.hu, turn), affine


def _place(
    affine: FloatArray,
    shape: tuple[int, ...],
    at_mm: tuple[float, float, float] | None,
    labels: npt.NDArray[np.int32] | None,
) -> npt.NDArray[np.int64]:
    if at_mm is not None:
        voxel = np.rint(voxel_of(affine, at_mm)).astype(np.int64)
        if (voxel < 0).any() or (voxel >= np.array(shape)).any():
            raise UserError(f"point {at_mm} mm (RAS): outside of the volume; `ctfoundry volume info` tells its reach")
        return voxel
    if labels is not None and labels.any():
        where = np.argwhere(labels > 0)
        nearest = where[np.abs(where - where.mean(axis=0)).sum(axis=1).argmin()]  # the mean itself may lie outside
        return np.asarray(nearest, dtype=np.int64)
    return np.array([n // 2 for n in shape], dtype=np.int64)


def cut(array: npt.NDArray[Any], across: int, centre: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """A plane with rows upwards; the patient's right, or anterior, at the left: both grow to the left."""
    plane: npt.NDArray[Any] = np.take(array, int(centre[across]), axis=across)
    return plane[::-1].T


def _letter(axis: Any, letters: str) -> None:
    places = ((0.01, 0.5, "left", "center"), (0.99, 0.5, "right", "center"), (0.5, 0.99, "center", "top"),
              (0.5, 0.01, "center", "bottom"))  # fmt: skip
    for letter, (x, y, across, along) in zip(letters, places, strict=True):
        axis.text(x, y, letter, transform=axis.transAxes, color="#ffd60a", fontsize=8, ha=across, va=along)
    axis.set_axis_off()


def export(opened: Opened, target: Path) -> None:
    """Write int16 HU as NIfTI, with the affine in millimetres.

    Raises:
        UserError: a name that no NIfTI has.
    """
    if not target.name.endswith(NIFTI_SUFFIXES):
        raise UserError(f"export to {target.name}: allowed are names that end in .nii or .nii.gz")
    write_nifti(opened.volume.hu, opened.volume.affine, target)


def export_labels(labels: Labels, target: Path) -> list[Path]:
    """Write labels on a volume's grid: as ``.b2nd``, as a NIfTI label map with the names in a JSON file beside it, or
    as such a map for each segment, named after it, where ``target`` has no suffix or is a folder.

    Returns:
        The files, without those of names.

    Raises:
        UserError: another name, or segments that overlap, which one NIfTI label map cannot hold.
    """
    if target.name.endswith(".b2nd"):
        write_labels(target, labels)
        return [target]
    if target.name.endswith(NIFTI_SUFFIXES):
        if len(labels.layers) > 1:
            raise UserError(f"labels to {target.name}: segments overlap, which a NIfTI label map cannot hold; allowed: "
                            "some of them (--segment), a folder (a file each), a name that ends in .b2nd")  # fmt: skip
        names = {str(s.value): {"name": s.name, "code": s.code} for s in labels.segments}
        _write_label_map(labels.layers[0], labels.affine, target, names)
        return [target]
    if target.suffix and not target.is_dir():
        raise UserError(f"labels to {target.name}: allowed are names that end in .b2nd, .nii or .nii.gz, and folders")
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for number, segment in enumerate(labels.segments, start=1):
        file = target / f"{number:02d}-{re.sub(r'[^0-9A-Za-z_-]+', '_', segment.name).strip('_')[:60]}.nii.gz"
        mask = labels.mask_of(segment).astype(np.uint16)
        _write_label_map(mask, labels.affine, file, {"1": {"name": segment.name, "code": segment.code}})
        written.append(file)
    return written


def _write_label_map(
    labels: npt.NDArray[np.uint16], affine: FloatArray, target: Path, names: dict[str, dict[str, str]]
) -> None:
    write_nifti(labels, affine, target)
    write_json(target.with_name(f"{target.name.removesuffix('.gz').removesuffix('.nii')}.json"), names)


def write_nifti(voxels: npt.NDArray[Any], affine: FloatArray, target: Path) -> None:
    """Columns first, slices last, as other software writes NIfTI and as ours reads it."""
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]], dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    with replacing(target) as temporary:
        packed = temporary.with_name(temporary.name + target.name[target.name.index(".nii") :])
        try:
            nib.save(image, packed)
            packed.rename(temporary)
        finally:
            packed.unlink(missing_ok=True)
