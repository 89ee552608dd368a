"""Parameters of the cohort: which series a line is made from, and who is held back for evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
        one_reconstruction: of the reconstructions of one acquisition, take one: most images, then the smallest key.
            The index names no acquisition; series of one study and one number of images count as one.
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


class CohortConfig(StageConfig):
    """Attributes:
    source: where the pretraining series come from. The evaluation series are the phantom scanner's for every
        source, so that releases from different data stay comparable.
    source_digest: digest of the source's tree, pinned by ``ctfoundry release --source``; null where there is no tree.
    collection, licence, doi: attribution of a dicom or nifti tree, carried into the bundle.
    idc: what is taken from the Imaging Data Commons, when it is the source.
    phantom: the embedded scanner: pretraining patients (when it is the source) and evaluation patients.
    """

    source: Literal["phantom", "dicom", "nifti", "idc"]
    source_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    collection: Name
    licence: Name
    doi: str
    idc: IdcConfig
    phantom: PhantomConfig
