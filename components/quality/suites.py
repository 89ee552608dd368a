"""The Great Expectations suites, readable in one place: what is expected, how severe, which reason.

Severities: ``reject`` costs the series that fails it; ``critical`` stops the run; ``warning`` is reported. What a
missing value would tell is measured in a column of its own: Great Expectations passes over missing values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from components.cohort.config import CohortConfig
from components.curate.config import CurateConfig
from components.quality.geometry import TOLERANCE
from components.screen.config import ScreenConfig

Severity = Literal["reject", "critical", "warning"]


@dataclass(frozen=True)
class Rule:
    """One expectation.

    Attributes:
        reason: code given to a series (or to the run) that fails it.
        expectation: name of a Great Expectations class.
        arguments: its arguments; the bounds come from ``params.yaml``.
        severity: see the module.
        says: what is expected, for people.
    """

    reason: str
    expectation: str
    arguments: dict[str, Any]
    says: str
    severity: Severity = "reject"


@dataclass(frozen=True)
class Suite:
    """A named list of rules."""

    name: str
    rules: tuple[Rule, ...] = field(default_factory=tuple)


def _among(reason: str, column: str, allowed: list[Any], says: str, severity: Severity = "reject") -> Rule:
    return Rule(reason, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": allowed}, says, severity)


def _between(
    reason: str, column: str, low: float | None, high: float | None, says: str, severity: Severity = "reject"
) -> Rule:
    bounds = {"column": column, "min_value": low, "max_value": high}
    arguments = {k: v for k, v in bounds.items() if v is not None}
    return Rule(reason, "ExpectColumnValuesToBeBetween", arguments, says, severity)


def _matching(reason: str, column: str, regex: str, says: str, severity: Severity) -> Rule:
    return Rule(reason, "ExpectColumnValuesToMatchRegex", {"column": column, "regex": regex}, says, severity)


def _accounting(rows: int, accepted_rate: float) -> tuple[Rule, ...]:
    """What holds for every table of series: none lost, none twice, and not suspiciously many rejected."""
    return (
        Rule("rows_lost", "ExpectTableRowCountToEqual", {"value": rows}, f"all {rows} series are there", "critical"),
        Rule("rows_twice", "ExpectColumnValuesToBeUnique", {"column": "series"}, "every series once", "critical"),
        Rule("mostly_rejected", "ExpectColumnMeanToBeBetween", {"column": "accepted", "min_value": accepted_rate},
             f"at least {accepted_rate:.0%} accepted", "warning"),
    )  # fmt: skip


def cohort(config: CohortConfig, shards: int, rows: int) -> Suite:
    """What a cohort must be before anything is transferred.

    Args:
        config: the source with the licences that it may bring, and the thresholds.
        shards: number of data shards.
        rows: series that the sources listed.
    """
    bounds = config.quality
    low_kb, high_kb = bounds.file_kb
    allowed = sorted({*bounds.licences, *(config.idc.licences if config.source == "idc" else ())})
    uses = ["pretrain/pretrain", "evaluation/train", "evaluation/test", "held_out/held_out"]
    return Suite(
        "cohort",
        (
            _among("licence_not_allowed", "licence", allowed, f"licence among {', '.join(allowed)}"),
            _among("attribution_missing", "attributed", [True], "collection and DOI known, if from the IDC"),
            _between("size_unknown", "files_known", 1, None, "the source lists at least one file"),
            _between("size_unknown", "bytes_known", 1, None, "the source lists more than 0 bytes"),
            _between("size_implausible", "file_kb", low_kb, high_kb, f"{low_kb:g} to {high_kb:g} kB per DICOM file"),
            _between("size_implausible", "series_mb", None, bounds.max_series_mb,
                     f"at most {bounds.max_series_mb:g} MB per series"),
            _among("retest_unknown", "retest_found", [True], "a second scan names a series of the same patient"),
            _between("mixed_patients", "study_patients", None, 1, "every study of one patient"),
            _matching("series_key", "series", "^s[0-9a-f]{16}$", "every series under a pseudonym", "critical"),
            _matching("patient_key", "patient", "^p[0-9a-f]{16}$", "every patient under a pseudonym", "critical"),
            _among("role_split", "role_split", uses, "role and split known and consistent", "critical"),
            _among("evaluation_leak", "leaks", [False],
                   "no patient of an evaluation set, or held out, is pretrained on", "critical"),
            _between("patient_in_two_splits", "patient_splits", None, 1, "every patient in one split", "critical"),
            _among("shard_unknown", "shard_dealt", [float(n) for n in range(shards)],
                   f"shard among 0 to {shards - 1}", "critical"),
            _between("location_twice", "location_uses", None, 1, "no object of the IDC listed twice", "critical"),
            Rule("too_few_pretrain", "ExpectColumnSumToBeBetween",
                 {"column": "pretrain_left", "min_value": bounds.min_pretrain_series},
                 f"at least {bounds.min_pretrain_series} series left to pretrain on", "critical"),
            _between("shards_unbalanced", "shard_load", None, bounds.max_shard_load,
                     f"no shard holds more than {bounds.max_shard_load:g} times its even share", "warning"),
            _between("collection_concentrated", "collection_share", None, bounds.max_collection_share,
                     f"no collection gives more than {bounds.max_collection_share:.0%} of the series", "warning"),
            _between("patient_concentrated", "patient_share", None, bounds.max_patient_share,
                     f"no patient gives more than {bounds.max_patient_share:.0%} of the series", "warning"),
            _matching("doi_malformed", "doi", r"^$|^10\.\d{4,9}/\S+$", "a DOI reads 10.<registrant>/<item>", "warning"),
            Rule("licence_not_stated", "ExpectColumnValuesToNotBeInSet",
                 {"column": "licence", "value_set": ["", "not stated"]}, "a licence is stated", "warning"),
            *_accounting(rows, bounds.min_accepted_rate),
        ),
    )  # fmt: skip


def headers(config: ScreenConfig, rows: int) -> Suite:
    """What headers must say before pixels are touched. ``rows``: series expected in the table."""
    rules = (*_images(config), *_geometry(config), *_consistency(config), *_privacy(config))
    return Suite("headers", (*rules, *_accounting(rows, config.min_accepted_rate)))


def _images(config: ScreenConfig) -> tuple[Rule, ...]:
    """The files are there, are CT, and are complete."""
    return (
        _among("acquire_failed", "status", ["acquired"], "the transfer succeeded"),
        _among("not_ct", "is_ct_image", [True], "modality and SOP class are CT"),
        _among("localizer", "is_localizer", [False], "no scout image"),
        _between("unreadable_files", "unreadable_files", 0, 0, "every file readable and complete"),
        _among("missing_tags", "missing_tags", [""], "position, orientation and pixel spacing are there"),
        _between("too_few_slices", "instances", config.min_instances, None,
                 f"at least {config.min_instances} slices"),
        *([] if config.body_parts is None else [
            _among("body_part", "body_region", ["", *config.body_parts],
                   f"of {', '.join(config.body_parts)}, where the header says")]),
    )  # fmt: skip


def _geometry(config: ScreenConfig) -> tuple[Rule, ...]:
    """The slices form one evenly sampled, upright grid of plausible size."""
    (thin, thick), (near, far) = config.thickness_mm, config.slice_step_mm
    (fine, coarse), (narrow, wide) = config.pixel_mm, config.field_mm
    dense, sparse = config.step_per_thickness
    stack = {"column_list": ["gap_ratio", "gap_min_ratio", "off_line_mm"], "max_gap_ratio": config.max_gap_ratio,
             "max_off_line_mm": config.max_off_line_mm}  # fmt: skip
    return (
        _between("slice_thickness", "thickness_min_mm", thin, None, f"thickness at least {thin} mm"),
        _between("slice_thickness", "thickness_max_mm", None, thick, f"thickness at most {thick} mm"),
        _between("repeated_positions", "repeated", 0, 0, "no position twice"),
        Rule("uneven_spacing", "ExpectSlicesToFormAnEvenStack", stack,
             f"slices on one line, gaps within {config.max_gap_ratio} times the median"),
        _between("uneven_spacing", "off_grid_mm", None, config.max_off_grid_mm,
                 f"every slice within {config.max_off_grid_mm:g} mm of an even grid"),
        _between("gantry_tilt", "tilt_degrees", None, config.max_tilt_degrees,
                 f"gantry tilt at most {config.max_tilt_degrees} degrees"),
        _between("mixed_geometry", "geometries", 0, 1, "one orientation, matrix and pixel spacing"),
        Rule("orientation", "ExpectColumnValuesToBeOrthonormalOrientation", {"column": "orientation",
             "tolerance": TOLERANCE}, "rows and columns are unit vectors at a right angle"),
        _between("slice_step", "gap_median_mm", near, far, f"{near} to {far} mm from slice to slice"),
        _between("slice_coverage", "step_per_thickness", dense, sparse,
                 f"from slice to slice {dense} to {sparse} times the thickness"),
        _between("pixel_spacing", "pixel_min_mm", fine, None, f"pixels of at least {fine} mm"),
        _between("pixel_spacing", "pixel_max_mm", None, coarse, f"pixels of at most {coarse} mm"),
        _between("pixel_aspect", "pixel_aspect", None, config.max_pixel_aspect,
                 f"pixels square to within {config.max_pixel_aspect}"),
        _between("field_of_view", "field_min_mm", narrow, None, f"field of view at least {narrow} mm"),
        _between("field_of_view", "field_max_mm", None, wide, f"field of view at most {wide} mm"),
        _between("matrix_too_small", "matrix_min", config.min_matrix, None,
                 f"at least {config.min_matrix} rows and columns"),
        _between("matrix_not_square", "matrix_aspect", None, 1, "as many rows as columns", "warning"),
        _between("mixed_thickness", "thickness_ratio", None, 1.01, "one slice thickness", "warning"),
        _between("stated_step", "step_per_stated", 0.95, 1.05,
                 "SpacingBetweenSlices agrees with the positions", "warning"),
    )  # fmt: skip


def _consistency(config: ScreenConfig) -> tuple[Rule, ...]:
    """One scan of one patient, whose stored values mean HU."""
    low, high = config.kvp
    positions = ["", "HFS", "HFP", "FFS", "FFP", "HFDR", "HFDL", "FFDR", "FFDL"]
    return (
        _among("lossy_compression", "lossy", [False], "never compressed with loss"),
        _among("lossy_compression", "lossy_syntax", [False], "no transfer syntax that loses information"),
        _between("duplicate_instances", "duplicate_instances", 0, 0, "no SOP instance twice"),
        _between("mixed_patients", "patients", 0, 1, "one patient"),
        _between("mixed_series", "studies", 0, 1, "one study"),
        _between("mixed_series", "series_uids", 0, 1, "one series"),
        _between("mixed_series", "frames_mixed", 0, 1, "one frame of reference"),
        _between("mixed_scanners", "scanners", 0, 1, "one scanner"),
        _between("mixed_kernels", "kernels", 0, 1, "one reconstruction kernel"),
        _between("kvp", "kvp_min", low, None, f"tube voltage at least {low:g} kV"),
        _between("kvp", "kvp_max", None, high, f"tube voltage at most {high:g} kV"),
        _among("photometric", "photometric", ["", "MONOCHROME2", "MONOCHROME1"], "grey values"),
        _between("photometric", "samples_per_pixel", None, 1, "one sample per pixel"),
        _between("multi_frame", "frames_per_image", None, 1, "one frame per image"),
        _between("bit_depth", "bits_allocated", 16, 16, "16 bits allocated (PS3.3 C.8.2.1)"),
        _between("bit_depth", "bits_stored", 12, 16, "12 to 16 bits stored (PS3.3 C.8.2.1)"),
        _between("rescale", "rescale_missing", 0, 0, "rescale slope and intercept in every image"),
        _between("rescale", "rescale_slopes", 0, 1, "one rescale slope"),
        _between("rescale", "rescale_intercepts", 0, 1, "one rescale intercept"),
        _between("rescale", "rescale_slope_min", config.rescale_slope[0], None,
                 f"rescale slope at least {config.rescale_slope[0]:g}"),
        _between("rescale", "rescale_slope_max", None, config.rescale_slope[1],
                 f"rescale slope at most {config.rescale_slope[1]:g}"),
        _among("rescale", "rescale_type", ["", "HU"], "stored values rescale to HU"),
        _among("patient_position", "patient_positions", positions, "one patient position, a defined term"),
        _among("projection", "is_projection", [False], "slices, no projection of several"),
        _between("left_out", "left_out", 0, 0, "no image left out of its series", "warning"),
    )  # fmt: skip


def _privacy(config: ScreenConfig) -> tuple[Rule, ...]:
    """De-identification: what is found is always reported; whether it stops the run, the line's parameters say."""
    column, unless = ("unstated", ", unless the header states their removal")
    if not config.accept_stated_deidentification:
        column, unless = "found", ""
    names = {"found": ("identifiers", "private_unknown", "burned_in"),
             "unstated": ("unstated_identifiers", "unstated_private", "unstated_burned_in")}[column]  # fmt: skip
    return (
        _among("burned_in_annotation", "burned_in", [False], "no text burned into the pixels"),
        _among("direct_identifiers", names[0], [""], f"no direct identifier{unless}", config.privacy),
        _between("private_tags", names[1], 0, 0, f"no private element off the safe list of PS3.15{unless}",
                 config.privacy),
        _among("burned_in_annotation", names[2], [False], f"no burned-in annotation{unless}", config.privacy),
        _among("direct_identifiers", "identifiers", [""], "no direct identifier at all", "warning"),
        _between("private_tags", "private_unknown", 0, 0, "no private element off the safe list at all", "warning"),
        _among("identity_removed", "identity_removed", [True], "the header states that identity was removed",
               "warning"),
    )  # fmt: skip


def volumes(config: CurateConfig, rows: int) -> Suite:
    """What voxels must show before a volume is used. ``rows``: series expected in the table."""
    low, high = config.body_median_hu
    quiet, loud = config.noise_hu
    least, most = config.brightest_hu
    return Suite(
        "volumes",
        (
            _among("decode_failed", "decoded", [True], "pixels decode"),
            _between("scan_too_short", "extent_mm", config.min_extent_mm, None,
                     f"at least {config.min_extent_mm} mm long"),
            _between("no_body", "body_fraction", config.min_body_fraction, None,
                     f"at least {config.min_body_fraction:.0%} of the volume is the patient"),
            _between("hu_calibration", "body_median_hu", low, high, f"soft tissue between {low} and {high} HU"),
            _between("hu_calibration", "hu_p01", None, config.max_darkest_hu,
                     f"the darkest percent at most {config.max_darkest_hu} HU"),
            _between("constant_slices", "constant_slices", 0, config.max_constant_slices,
                     f"at most {config.max_constant_slices} slices of one value"),
            _between("scan_too_long", "extent_mm", None, config.max_extent_mm,
                     f"at most {config.max_extent_mm:g} mm long"),
            _between("mostly_air", "air_fraction", None, config.max_air_fraction,
                     f"at most {config.max_air_fraction:.0%} of the volume is air"),
            _between("hu_range", "hu_p99", least, most, f"the brightest percent begins between {least} and {most} HU"),
            _between("hu_clipped", "saturated_fraction", None, config.max_saturated_fraction,
                     f"at most {config.max_saturated_fraction:.1%} of the patient at the highest value"),
            _between("few_levels", "hu_levels", config.min_levels, None, f"at least {config.min_levels} HU values"),
            _between("noise", "noise_hu", quiet, loud, f"noise between {quiet:g} and {loud:g} HU"),
            _between("duplicate_slices", "duplicate_slices", 0, config.max_duplicate_slices,
                     f"at most {config.max_duplicate_slices} slices with another's pixels"),
            _between("slice_jump", "slice_jump", None, config.max_slice_jump,
                     f"neighbouring slices differ at most {config.max_slice_jump:g} times as much as usual"),
            *_content(config),
            _between("body_cut", "border_fraction", None, config.max_border_fraction,
                     f"at most {config.max_border_fraction:.0%} of the planes' edges lie in the patient", "warning"),
            _between("body_left_out", "cut_fraction", None, config.max_cut_fraction,
                     f"at most {config.max_cut_fraction:.0%} of what is denser than air lies outside of the crop",
                     "warning"),
            Rule("mixed_grids", "ExpectColumnUniqueValueCountToBeBetween", {"column": "grid", "max_value": 1},
                 "all volumes on one grid", "critical"),
            *_accounting(rows, config.min_accepted_rate),
        ),
    )  # fmt: skip


def _content(config: CurateConfig) -> tuple[Rule, ...]:
    """The voxels show what the line is for, whatever headers say."""
    small, large = config.body_area_cm2
    rules = [
        _between("body_size", "body_area_cm2", small, large, f"transverse sections of {small:g} to {large:g} cm2"),
    ]
    if config.min_bone_fraction is not None:
        rules.append(_between("little_bone", "bone_fraction", config.min_bone_fraction, None,
                              f"at least {config.min_bone_fraction:.0%} of the tissue as bright as bone"))  # fmt: skip
    if config.max_lung_fraction is not None:
        rules.append(_between("much_lung", "lung_fraction", None, config.max_lung_fraction,
                              f"as dark as lung at most {config.max_lung_fraction:.0%} of what is tissue"))  # fmt: skip
    return tuple(rules)
