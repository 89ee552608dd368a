"""Suite *volumes*: what voxels must show before a volume is used."""

from __future__ import annotations

from components.curate.config import CurateConfig
from components.quality.rules import Rule, Suite, accounting, among, between


def volumes_suite(config: CurateConfig, rows: int) -> Suite:
    """What voxels must show before a volume is used. ``rows``: series expected in the table."""
    low, high = config.body_median_hu
    quiet, loud = config.noise_hu
    least, most = config.brightest_hu
    return Suite(
        "volumes",
        (
            among("decode_failed", "decoded", [True], "pixels decode"),
            between("scan_too_short", "extent_mm", config.min_extent_mm, None,
                     f"at least {config.min_extent_mm} mm long"),
            between("no_body", "body_fraction", config.min_body_fraction, None,
                     f"at least {config.min_body_fraction:.0%} of the volume is the patient"),
            between("hu_calibration", "body_median_hu", low, high, f"soft tissue between {low} and {high} HU"),
            between("hu_calibration", "hu_p01", None, config.max_darkest_hu,
                     f"the darkest percent at most {config.max_darkest_hu} HU"),
            between("constant_slices", "constant_slices", 0, config.max_constant_slices,
                     f"at most {config.max_constant_slices} slices of one value"),
            between("scan_too_long", "extent_mm", None, config.max_extent_mm,
                     f"at most {config.max_extent_mm:g} mm long"),
            between("mostly_air", "air_fraction", None, config.max_air_fraction,
                     f"at most {config.max_air_fraction:.0%} of the volume is air"),
            between("hu_range", "hu_p99", least, most, f"the brightest percent begins between {least} and {most} HU"),
            between("hu_clipped", "saturated_fraction", None, config.max_saturated_fraction,
                     f"at most {config.max_saturated_fraction:.1%} of the patient at the highest value"),
            between("few_levels", "hu_levels", config.min_levels, None, f"at least {config.min_levels} HU values"),
            between("noise", "noise_hu", quiet, loud, f"noise between {quiet:g} and {loud:g} HU"),
            between("duplicate_slices", "duplicate_slices", 0, config.max_duplicate_slices,
                     f"at most {config.max_duplicate_slices} slices with another's pixels"),
            between("slice_jump", "slice_jump", None, config.max_slice_jump,
                     f"neighbouring slices differ at most {config.max_slice_jump:g} times as much as usual"),
            *_content(config),
            between("body_cut", "border_fraction", None, config.max_border_fraction,
                     f"at most {config.max_border_fraction:.0%} of the planes' edges lie in the patient", "warning"),
            between("body_left_out", "cut_fraction", None, config.max_cut_fraction,
                     f"at most {config.max_cut_fraction:.0%} of what is denser than air lies outside of the crop",
                     "warning"),
            Rule("mixed_grids", "ExpectColumnUniqueValueCountToBeBetween", {"column": "grid", "max_value": 1},
                 "all volumes on one grid", "critical"),
            *accounting(rows, config.min_accepted_rate),
        ),
    )  # fmt: skip


def _content(config: CurateConfig) -> tuple[Rule, ...]:
    """The voxels show what the line is for, whatever headers say."""
    small, large = config.body_area_cm2
    rules = [
        between("body_size", "body_area_cm2", small, large, f"transverse sections of {small:g} to {large:g} cm2"),
    ]
    if config.min_bone_fraction is not None:
        rules.append(between("little_bone", "bone_fraction", config.min_bone_fraction, None,
                              f"at least {config.min_bone_fraction:.0%} of the tissue as bright as bone"))  # fmt: skip
    if config.max_lung_fraction is not None:
        rules.append(between("much_lung", "lung_fraction", None, config.max_lung_fraction,
                              f"as dark as lung at most {config.max_lung_fraction:.0%} of what is tissue"))  # fmt: skip
    return tuple(rules)
