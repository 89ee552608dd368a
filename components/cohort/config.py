"""Parameters of the cohort: which series a line is made from, and who is held back for evaluation."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Literal

from pydantic import Field, field_validator

from components.params import StageConfig
from components.phantom.config import PhantomConfig

Name = Annotated[str, Field(min_length=1)]
AtLeastOne = Annotated[int, Field(ge=1)]


class IdcConfig(StageConfig):
    """Which CT series of the Imaging Data Commons are taken: a query, then options applied in this order.

    Attributes:
        query: name of a file in ``components/cohort/queries``.
        idc_version: newest IDC version whose series are taken; null takes all.
        licences: licences that are allowed, as the IDC names them; non-commercial ones are out unless named here.
        collections: taken; null takes all.
        excluded_collections: left out.
        evaluation_collections: kept for evaluation: no patient of theirs is taken, in whatever collection they appear.
        max_series_mb: larger series are left out; null sets no limit.
        one_reconstruction: of each study take one series: most images, then the smallest key. The index names no
            acquisition, so that a second one of the same study is left out as a second reconstruction is.
        max_series_per_patient: of each patient at most so many, drawn by ``seed``; null sets no limit.
        sample: at most so many series, drawn by ``seed``; null takes all.
        seed: of both draws.
    """

    query: Name
    idc_version: AtLeastOne | None
    licences: Annotated[tuple[Name, ...], Field(min_length=1)]
    collections: tuple[Name, ...] | None
    excluded_collections: tuple[Name, ...]
    evaluation_collections: tuple[Name, ...]
    max_series_mb: Annotated[float, Field(gt=0)] | None
    one_reconstruction: bool
    max_series_per_patient: AtLeastOne | None
    sample: AtLeastOne | None
    seed: int


class DicomwebConfig(StageConfig):
    """Which CT series of a PACS are taken. How it is reached is configuration of the machine.

    Attributes:
        body_parts: values of BodyPartExamined, in capitals; series that state none are left out. Null takes all.
        study_dates: first and last day, as '2015-01-31'; null takes all.
        min_instances: series with fewer are left out, such as localisers.
        page: answers to one query; more are asked for page by page.
    """

    body_parts: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Z0-9_ ]+$")], ...], Field(min_length=1)] | None
    study_dates: tuple[str, str] | None
    min_instances: AtLeastOne
    page: AtLeastOne

    @field_validator("study_dates")
    @classmethod
    def _are_days(cls, days: tuple[str, str] | None) -> tuple[str, str] | None:
        try:
            ordered = days is None or date.fromisoformat(days[0]) <= date.fromisoformat(days[1])
        except ValueError:
            ordered = False
        if not ordered or any(len(day) != len("2015-01-31") for day in days or ()):
            raise ValueError("first and last day, such as ['2015-01-31', '2024-12-31'], or null")
        return days


class NiftiConfig(StageConfig):
    """Whose the volumes of a NIfTI tree are: their files do not say.

    Attributes:
        patient: a pattern such as '{patient}/**', '{patient}_*' or 'imagesTr/{patient}_*'; a regular expression with a
            group ``patient``; or a table of the tree, such as 'patients.csv' with the columns file and patient. Pattern
            and expression are held against a volume's whole path below the root, without .nii or .nii.gz. Null takes
            every volume for a patient of its own, and is refused where patients are held out for evaluation.
    """

    patient: Name | None

    @field_validator("patient")
    @classmethod
    def _tells_a_patient(cls, text: str | None) -> str | None:
        if text is not None and not text.endswith(".csv") and "patient" not in patient_pattern(text).groupindex:
            raise ValueError("a pattern with {patient}, an expression with (?P<patient>...), a .csv file, or null")
        return text


def patient_pattern(text: str) -> re.Pattern[str]:
    """The expression that a pattern stands for: ``*`` and ``?`` stay within a folder, ``**`` does not. Raises
    ValueError where an expression is none."""
    if "{patient}" not in text:
        try:
            return re.compile(text)
        except re.error as error:
            raise ValueError(f"no pattern with {{patient}}, and no regular expression: {error}") from None
    parts = {"{patient}": "(?P<patient>[^/]+)", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\{patient\}|\*\*|\*|\?)", text)
    try:
        return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces))
    except re.error:
        raise ValueError("one {patient} is allowed in a pattern") from None


class CohortQuality(StageConfig):
    """Thresholds of the suite *cohort*.

    Attributes:
        licences: allowed besides those of ``idc.licences``.
        file_kb: allowed mean size of a series' DICOM files.
        max_series_mb: larger series are no single scan.
        min_pretrain_series: fewer, and the run stops.
        max_shard_load: series or bytes of a shard over its even share (warning).
        max_collection_share, max_patient_share: of the series to pretrain on, where there are several (warning).
        min_accepted_rate: below this share of accepted series the suite warns.
        max_unreadable_share: of a tree's DICOM or NIfTI files; with more that cannot be read, and more than ten, the
            run stops. What is plainly something else does not count.
    """

    licences: tuple[Name, ...]
    file_kb: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    max_series_mb: Annotated[float, Field(gt=0)]
    min_pretrain_series: AtLeastOne
    max_shard_load: Annotated[float, Field(ge=1)]
    max_collection_share: Annotated[float, Field(gt=0, le=1)]
    max_patient_share: Annotated[float, Field(gt=0, le=1)]
    min_accepted_rate: Annotated[float, Field(ge=0, le=1)]
    max_unreadable_share: Annotated[float, Field(ge=0, le=1)]


class CohortConfig(StageConfig):
    """Attributes:
    source: where the pretraining series come from. The evaluation series are the phantom scanner's for every
        source, so that releases from different data stay comparable.
    source_digest: digest of the source's tree, pinned by ``ctfoundry release --source``; null where there is no tree.
    paths: how tables name the files of a dicom or nifti tree: ``keyed`` by pseudonyms, as file and folder names of a
        site often hold patients' names; or ``shown``.
    collection, licence, doi: attribution of a dicom or nifti tree or a PACS, carried into the bundle.
    idc: what is taken from the Imaging Data Commons, when it is the source.
    nifti: whose the volumes of a nifti tree are, when it is the source.
    dicomweb: what is taken from a PACS, when it is the source.
    phantom: the embedded scanner: pretraining patients (when it is the source) and evaluation patients.
    quality: thresholds of the suite *cohort*.
    """

    source: Literal["phantom", "dicom", "nifti", "idc", "dicomweb"]
    source_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    paths: Literal["keyed", "shown"]
    collection: Name
    licence: Name
    doi: str
    idc: IdcConfig
    nifti: NiftiConfig
    dicomweb: DicomwebConfig
    phantom: PhantomConfig
    quality: CohortQuality
