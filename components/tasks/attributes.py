"""By what groups of test cases are told apart: names as in ``metrics.json`` and in gates, and as people read them."""

from __future__ import annotations

SEX, AGE, VENDOR, KERNEL = "sex", "age", "vendor", "kernel"
THICKNESS, CONTRAST, SET = "slice_thickness", "contrast", "set"
ATTRIBUTES = {
    SEX: "Sex",
    AGE: "Age",
    VENDOR: "Vendor",
    KERNEL: "Kernel",
    THICKNESS: "Slice thickness",
    CONTRAST: "Contrast",
    SET: "Labelled set",
}
