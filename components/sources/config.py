"""Where a line's CT comes from, and how it is brought in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal

from pydantic import Field, field_validator

from components.settings import Seed, StageConfig

Name = Annotated[str, Field(min_length=1)]
AtLeastOne = Annotated[int, Field(ge=1, le=10**9)]


class IdcConfig(StageConfig):
    """Which CT series of the Imaging Data Commons are taken: a query, then options applied in this order.

    Attributes:
        query: name of a file in ``components/sources/queries``.
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
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]


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
    min_instances: Annotated[int, Field(ge=1, le=100_000)]
    page: Annotated[int, Field(ge=1, le=100_000)]

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
    """As :func:`path_pattern`, of a path that names its patient."""
    return path_pattern(text, {"patient": "[^/]+"})


def path_pattern(text: str, named: Mapping[str, str]) -> re.Pattern[str]:
    """The expression that a pattern stands for: ``*`` and ``?`` stay within a folder, ``**`` does not.

    Args:
        text: with ``{name}`` for one of ``named`` at least; or a regular expression.
        named: what ``{name}`` may be in a path, as an expression.

    Raises:
        ValueError: an expression that is none, or a name that is there twice.
    """
    if not any(f"{{{name}}}" in text for name in named):
        try:
            return re.compile(text)
        except re.error as error:
            known = " or ".join(f"{{{name}}}" for name in named)
            raise ValueError(f"no pattern with {known}, and no regular expression: {error}") from None
    parts = {f"{{{name}}}": f"(?P<{name}>{found})" for name, found in named.items()}
    parts |= {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split("(" + "|".join(map(re.escape, parts)) + ")", text)
    try:
        return re.compile("".join(parts.get(piece, re.escape(piece)) for piece in pieces))
    except re.error:
        twice = next(name for name in named if text.count(f"{{{name}}}") > 1)
        raise ValueError(f"one {{{twice}}} is allowed in a pattern") from None


class PhantomConfig(StageConfig):
    """Block ``<line>.cohort.phantom``.

    Attributes:
        anatomy: what is scanned: a trunk with organs and lesions, or a head with findings.
        pretrain_patients: patients scanned once for pretraining.
        evaluation_patients: other patients, half of them to train probes, half to test them.
        retest_patients: how many of the test half are scanned a second time.
        fault_share: at least this share of all series carries a fault; those are additional series of further
            pretraining patients.
        seed: everything else follows from it.
        site: whose scanners these are. At another than ``home`` patients are others, whatever the seed.
    """

    anatomy: Literal["trunk", "head"]
    pretrain_patients: int = Field(ge=0, le=9999)
    evaluation_patients: int = Field(ge=4, le=9999)
    retest_patients: int = Field(ge=0, le=4999)
    fault_share: float = Field(ge=0.0, le=0.5)
    seed: Seed
    site: Literal["home", "other"] = "home"


class SourceConfig(StageConfig):
    """Where a line's CT comes from.

    Attributes:
        source: of the pretraining series. The evaluation series are the phantom scanner's for every source, so that
            releases from different data stay comparable.
        source_digest: digest of the source's tree, pinned by ``ctfoundry release --source``; null where there is none.
        paths: how tables name the files of a dicom or nifti tree: ``keyed`` by pseudonyms, as file and folder names of
            a site often hold patients' names; or ``shown``.
        collection, licence, doi: attribution of a dicom or nifti tree or a PACS, carried into the bundle.
        idc: what is taken from the Imaging Data Commons, when it is the source.
        nifti: whose the volumes of a nifti tree are, when it is the source.
        dicomweb: what is taken from a PACS, when it is the source.
        phantom: the embedded scanner: pretraining patients (when it is the source) and evaluation patients.
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


class TransferConfig(StageConfig):
    """How long the transfer of one series may take, and how hard it is tried.

    Attributes:
        attempts: in all.
        backoff_s: wait before the second attempt; doubled before each further one.
        stall_s: without a new byte for so long, an attempt is given up.
        slowest_mb_s: the deadline of an attempt is the time that its bytes take at this rate, and twice ``stall_s``.
        connections: objects of one series in flight at a time.
    """

    attempts: Annotated[int, Field(ge=1, le=20)]
    backoff_s: Annotated[float, Field(ge=0)]
    stall_s: Annotated[float, Field(gt=0)]
    slowest_mb_s: Annotated[float, Field(gt=0)]
    connections: Annotated[int, Field(ge=1, le=256)]

    def deadline_s(self, size: int) -> float:
        """Seconds that one attempt at ``size`` bytes may take."""
        return 2 * self.stall_s + size / (self.slowest_mb_s * 1e6)


class AcquireConfig(StageConfig):
    """How the series come in. Most of it changes no output, see ``settings.OF_THE_MACHINE``.

    Attributes:
        workers: series in transfer at a time; null takes two per core, or one where they are computed, as phantoms are.
        max_memory_gib: what a worker may take to read the headers of one series; one that needs more is lost.
        raw: what becomes of a shard's raw files once it is preprocessed: ``evict`` them, or ``keep`` them until others
            need the room, so that another grid is made without another transfer.
        mixed_series: a series of several stacks (a scout among the slices, two kernels, several points in time) is
            judged as a ``whole``, which the suite *headers* rejects, or by its ``largest_stack``: other images are left
            out.
        max_unexpected: series of a shard that may be lost to an error nobody foresaw, here and in preprocessing; with
            more the stage stops.
        transfer: of one series.
    """

    workers: Annotated[int, Field(ge=1, le=1000)] | None
    max_memory_gib: Annotated[float, Field(ge=0.1)]
    raw: Literal["keep", "evict"]
    mixed_series: Literal["whole", "largest_stack"]
    max_unexpected: Annotated[int, Field(ge=0)]
    transfer: TransferConfig

    @property
    def only_largest_stack(self) -> bool:
        return self.mixed_series == "largest_stack"
