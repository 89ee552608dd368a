"""Suite *headers*: what a series must say before its voxels are decoded."""

from __future__ import annotations

from components.quality.geometry import TOLERANCE
from components.quality.rules import Rule, Suite, accounting, among, between
from components.screen.config import ScreenConfig


def headers_suite(config: ScreenConfig, rows: int) -> Suite:
    """What headers must say before pixels are touched. ``rows``: series expected in the table."""
    rules = (*_images(config), *_geometry(config), *_consistency(config), *_privacy(config))
    return Suite("headers", (*rules, *accounting(rows, config.min_accepted_rate)))


def _images(config: ScreenConfig) -> tuple[Rule, ...]:
    """The files are there, are CT, and are complete."""
    return (
        among("acquire_failed", "status", ["acquired"], "the transfer succeeded"),
        among("not_ct", "is_ct_image", [True], "modality and SOP class are CT"),
        among("localizer", "is_localizer", [False], "no scout image"),
        between("unreadable_files", "unreadable_files", 0, 0, "every file readable and complete"),
        among("missing_tags", "missing_tags", [""], "position, orientation and pixel spacing are there"),
        between("too_few_slices", "instances", config.min_instances, None,
                 f"at least {config.min_instances} slices"),
        *([] if config.body_parts is None else [
            among("body_part", "body_region", ["", *config.body_parts],
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
        between("slice_thickness", "thickness_min_mm", thin, None, f"thickness at least {thin} mm"),
        between("slice_thickness", "thickness_max_mm", None, thick, f"thickness at most {thick} mm"),
        between("repeated_positions", "repeated", 0, 0, "no position twice"),
        Rule("uneven_spacing", "ExpectSlicesToFormAnEvenStack", stack,
             f"slices on one line, gaps within {config.max_gap_ratio} times the median"),
        between("uneven_spacing", "off_grid_mm", None, config.max_off_grid_mm,
                 f"every slice within {config.max_off_grid_mm:g} mm of an even grid"),
        between("gantry_tilt", "tilt_degrees", None, config.max_tilt_degrees,
                 f"gantry tilt at most {config.max_tilt_degrees} degrees"),
        between("mixed_geometry", "geometries", 0, 1, "one orientation, matrix and pixel spacing"),
        Rule("orientation", "ExpectColumnValuesToBeOrthonormalOrientation", {"column": "orientation",
             "tolerance": TOLERANCE}, "rows and columns are unit vectors at a right angle"),
        between("slice_step", "gap_median_mm", near, far, f"{near} to {far} mm from slice to slice"),
        between("slice_coverage", "step_per_thickness", dense, sparse,
                 f"from slice to slice {dense} to {sparse} times the thickness"),
        between("pixel_spacing", "pixel_min_mm", fine, None, f"pixels of at least {fine} mm"),
        between("pixel_spacing", "pixel_max_mm", None, coarse, f"pixels of at most {coarse} mm"),
        between("pixel_aspect", "pixel_aspect", None, config.max_pixel_aspect,
                 f"pixels square to within {config.max_pixel_aspect}"),
        between("field_of_view", "field_min_mm", narrow, None, f"field of view at least {narrow} mm"),
        between("field_of_view", "field_max_mm", None, wide, f"field of view at most {wide} mm"),
        between("matrix_too_small", "matrix_min", config.min_matrix, None,
                 f"at least {config.min_matrix} rows and columns"),
        between("matrix_not_square", "matrix_aspect", None, 1, "as many rows as columns", "warning"),
        between("mixed_thickness", "thickness_ratio", None, 1.01, "one slice thickness", "warning"),
        between("stated_step", "step_per_stated", 0.95, 1.05,
                 "SpacingBetweenSlices agrees with the positions", "warning"),
    )  # fmt: skip


def _consistency(config: ScreenConfig) -> tuple[Rule, ...]:
    """One scan of one patient, whose stored values mean HU."""
    low, high = config.kvp
    positions = ["", "HFS", "HFP", "FFS", "FFP", "HFDR", "HFDL", "FFDR", "FFDL"]
    return (
        among("lossy_compression", "lossy", [False], "never compressed with loss"),
        among("lossy_compression", "lossy_syntax", [False], "no transfer syntax that loses information"),
        between("duplicate_instances", "duplicate_instances", 0, 0, "no SOP instance twice"),
        between("mixed_patients", "patients", 0, 1, "one patient"),
        between("mixed_series", "studies", 0, 1, "one study"),
        between("mixed_series", "series_uids", 0, 1, "one series"),
        between("mixed_series", "frames_mixed", 0, 1, "one frame of reference"),
        between("mixed_scanners", "scanners", 0, 1, "one scanner"),
        between("mixed_kernels", "kernels", 0, 1, "one reconstruction kernel"),
        between("kvp", "kvp_min", low, None, f"tube voltage at least {low:g} kV"),
        between("kvp", "kvp_max", None, high, f"tube voltage at most {high:g} kV"),
        among("photometric", "photometric", ["", "MONOCHROME2", "MONOCHROME1"], "grey values"),
        between("photometric", "samples_per_pixel", None, 1, "one sample per pixel"),
        between("multi_frame", "frames_per_image", None, 1, "one frame per image"),
        between("bit_depth", "bits_allocated", 16, 16, "16 bits allocated (PS3.3 C.8.2.1)"),
        between("bit_depth", "bits_stored", 12, 16, "12 to 16 bits stored (PS3.3 C.8.2.1)"),
        between("rescale", "rescale_missing", 0, 0, "rescale slope and intercept in every image"),
        between("rescale", "rescale_slopes", 0, 1, "one rescale slope"),
        between("rescale", "rescale_intercepts", 0, 1, "one rescale intercept"),
        between("rescale", "rescale_slope_min", config.rescale_slope[0], None,
                 f"rescale slope at least {config.rescale_slope[0]:g}"),
        between("rescale", "rescale_slope_max", None, config.rescale_slope[1],
                 f"rescale slope at most {config.rescale_slope[1]:g}"),
        among("rescale", "rescale_type", ["", "HU"], "stored values rescale to HU"),
        among("patient_position", "patient_positions", positions, "one patient position, a defined term"),
        among("projection", "is_projection", [False], "slices, no projection of several"),
        between("left_out", "left_out", 0, 0, "no image left out of its series", "warning"),
    )  # fmt: skip


def _privacy(config: ScreenConfig) -> tuple[Rule, ...]:
    """De-identification: what is found is always reported; whether it stops the run, the line's parameters say."""
    column, unless = ("unstated", ", unless the header states their removal")
    if not config.accept_stated_deidentification:
        column, unless = "found", ""
    names = {"found": ("identifiers", "private_unknown", "burned_in"),
             "unstated": ("unstated_identifiers", "unstated_private", "unstated_burned_in")}[column]  # fmt: skip
    return (
        among("burned_in_annotation", "burned_in", [False], "no text burned into the pixels"),
        among("direct_identifiers", names[0], [""], f"no direct identifier{unless}", config.privacy),
        between("private_tags", names[1], 0, 0, f"no private element off the safe list of PS3.15{unless}",
                 config.privacy),
        among("burned_in_annotation", names[2], [False], f"no burned-in annotation{unless}", config.privacy),
        among("direct_identifiers", "identifiers", [""], "no direct identifier at all", "warning"),
        between("private_tags", "private_unknown", 0, 0, "no private element off the safe list at all", "warning"),
        among("identity_removed", "identity_removed", [True], "the header states that identity was removed",
               "warning"),
    )  # fmt: skip
