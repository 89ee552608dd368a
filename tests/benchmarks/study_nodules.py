"""What the study of nodules reads: LIDC nodules at their full extent, the folder's other scans, and who tests whom."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from components.ct.dicom import read_series
from components.ct.keys import patient_key
from components.ct.nifti import read_nifti
from components.ct.standardise import resample_only
from components.ct.store import Volume, voxel_of, write_volume
from components.preprocess.config import PreprocessConfig
from components.settings import read_yaml
from components.sources.lidc import ROOT, nodule_file, read_ratings
from components.tasks.config import EvaluateConfig
from components.tasks.features import AnyVolume, Volumes
from components.tasks.nodules import half_of, nodules
from components.tasks.table import Inputs

FOLDS = 5


class WholeNodules(Volumes):
    """A nodule's file at its full extent, where a task asks for it."""

    def open(self, name: str) -> AnyVolume:
        if name in self._nodules:
            return resample_only(read_nifti(self._nodules[name]), self._preprocess)
        return super().open(name)


def part_of(part: str, seed: int, patient: str) -> str:
    """``train``, ``test``, or ``out``: a patient of the test half, while exploring."""
    if part.startswith("fold-"):
        number = hashlib.sha256(f"{seed}/folds/{patient}".encode()).digest()[0] % FOLDS
        return "test" if part == f"fold-{number}" else "train"
    half = half_of(seed, patient)
    if part == "explore":
        return half_of(seed + 1, patient) if half == "train" else "out"
    return half


def prepare_nodules(
    ct: Path, out: Path, evaluate: EvaluateConfig, preprocess: PreprocessConfig, part: str
) -> pd.DataFrame:
    """Store what is pretrained on; the nodules' task table."""
    nobody = pd.DataFrame({"status": [], "role": [], "patient": [], "series": []}, dtype=str)
    table = nodules(ROOT, Inputs("wholebody", "crop", nobody, nobody, evaluate, preprocess)).table
    table["split"] = table["patient"].map(lambda patient: part_of(part, evaluate.seed, patient))
    labels = read_ratings(ct / ROOT, str(evaluate.lidc_nodules))
    for row in labels.itertuples():
        if part_of(part, evaluate.seed, str(row.patient)) == "train":
            seen = resample_only(read_nifti(nodule_file(ct / ROOT, str(row.file))), preprocess)
            write_volume(out / "volumes" / f"{row.case}.b2nd", seen, {})
    for name, native in other_scans(ct):
        if part_of(part, evaluate.seed, patient_key(name)) == "train":
            write_volume(out / "volumes" / f"{name}.b2nd", resample_only(native, preprocess), {})
    return table[table["split"] != "out"]


def other_scans(ct: Path) -> list[tuple[str, Volume]]:
    scans = [(p.name, read_series(sorted(p.glob("*.dcm")))) for p in sorted((ct / "dicom").glob("sts_*"))]
    for folder in sorted((ct / "nifti").iterdir()):
        image = next(p for p in sorted(folder.rglob("*.nii.gz")) if "mask" not in p.name and "label" not in p.name)
        scans.append((folder.name, read_nifti(image)))
    return scans


def sarcomas(ct: Path, out: Path, preprocess: PreprocessConfig) -> pd.DataFrame:
    """Five points within each tumour, five of the body at least 15 mm outside; patients split into halves."""
    rows = []
    for name, native in other_scans(ct):
        if not name.startswith("sts"):
            continue
        volume = resample_only(native, preprocess)
        path = out / "sarcomas" / f"{name}.b2nd"
        write_volume(path, volume, {})
        mask = read_nifti(ct / "labels" / name / "mask.nii.gz")
        millimetres = np.linalg.norm(mask.affine[:3, :3], axis=0)
        away = ndimage.distance_transform_edt(mask.hu == 0, sampling=millimetres)  # on the mask's own grid
        rng = np.random.default_rng([read_yaml()["wholebody"]["evaluate"]["seed"], int(name[-3:])])
        body = np.argwhere(volume.hu > -300)
        points = body[rng.permutation(len(body))[:20_000]] @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        distance = ndimage.map_coordinates(away, voxel_of(mask.affine, points).T, order=0, cval=99.0)
        for label, chosen in (("tumour", distance == 0), ("other", distance > 15)):
            for number, (x, y, z) in enumerate(points[chosen][:5]):
                patient = patient_key(name)
                rows.append(
                    {"task": "sarcoma", "case": f"{name}/{label}-{number}", "patient": patient, "volume": str(path),
                     "x": x, "y": y, "z": z, "label": label, "split": "train" if int(name[-3:]) % 2 else "test"}
                )  # fmt: skip
    return pd.DataFrame(rows)
