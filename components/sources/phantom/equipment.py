"""The scanners of the phantom: vendors, models, reconstruction kernels, and how each stores its pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel.

    Attributes:
        name: as the vendor writes ConvolutionKernel.
        psf_mm: standard deviation of the in-plane point spread.
        sharpen: share of unsharp masking added (edge overshoot of sharp kernels).
        noise: factor on the patient's noise level.
        grain_mm: standard deviation of the noise's blur; small is fine-grained.
    """

    name: str
    psf_mm: float
    sharpen: float
    noise: float
    grain_mm: float


@dataclass(frozen=True)
class Vendor:
    """One manufacturer's habits.

    Attributes:
        manufacturer, models: as written in the headers.
        body, head: kernels for trunks and for heads.
        intercept: RescaleIntercept.
        signed: pixels are signed 16-bit; else unsigned with 12 bits stored.
        padding: stored value outside of the reconstruction circle, or None.
        explicit: explicit VR little endian; else implicit.
    """

    manufacturer: str
    models: tuple[str, ...]
    body: tuple[Kernel, ...]
    head: tuple[Kernel, ...]
    intercept: int
    signed: bool
    padding: int | None
    explicit: bool


def _soft(name: str) -> Kernel:
    return Kernel(name, psf_mm=1.1, sharpen=0.0, noise=1.0, grain_mm=1.3)


def _medium(name: str) -> Kernel:
    return Kernel(name, psf_mm=0.8, sharpen=0.25, noise=1.5, grain_mm=0.9)


def _sharp(name: str) -> Kernel:
    return Kernel(name, psf_mm=0.6, sharpen=0.6, noise=2.4, grain_mm=0.6)


VENDORS: dict[str, Vendor] = {
    "ge": Vendor(
        "GE MEDICAL SYSTEMS",
        ("LightSpeed VCT", "Discovery CT750 HD", "Optima CT660"),
        (_soft("STANDARD"), _soft("SOFT"), _medium("DETAIL"), _sharp("LUNG")),
        (_soft("STANDARD"), _soft("SOFT"), _medium("DETAIL")),
        intercept=-1024,
        signed=True,
        padding=-2000,
        explicit=True,
    ),
    "siemens": Vendor(
        "SIEMENS",
        ("SOMATOM Definition AS+", "Sensation 64", "SOMATOM Force"),
        (_soft("B30f"), _medium("B40f"), _sharp("B60f")),
        (_soft("H31s"), _soft("H30s"), _medium("H40s")),
        intercept=-1024,
        signed=False,
        padding=None,
        explicit=True,
    ),
    "philips": Vendor(
        "Philips",
        ("Brilliance 64", "iCT 256", "Ingenuity CT"),
        (_soft("B"), _medium("C"), _sharp("L")),
        (_soft("UA"), _soft("UB"), _medium("UC")),
        intercept=-1024,
        signed=False,
        padding=None,
        explicit=False,
    ),
    "toshiba": Vendor(
        "TOSHIBA",
        ("Aquilion ONE", "Aquilion PRIME", "Aquilion"),
        (_soft("FC08"), _medium("FC13"), _sharp("FC51")),
        (_soft("FC21"), _soft("FC26"), _medium("FC64")),
        intercept=0,
        signed=True,
        padding=None,
        explicit=False,
    ),
    # Of the other site: smoother and sharper than those above, and none of their names.
    "canon": Vendor(
        "CANON MEDICAL SYSTEMS",
        ("Aquilion ONE / GENESIS", "Aquilion Prime SP"),
        (Kernel("FC18", 1.4, 0.0, 0.9, 1.7), Kernel("FC52", 0.5, 0.7, 2.6, 0.5)),
        (Kernel("FC24", 1.4, 0.0, 0.9, 1.7), Kernel("FC68", 0.7, 0.4, 1.8, 0.7)),
        intercept=0,
        signed=True,
        padding=None,
        explicit=True,
    ),
    "uih": Vendor(
        "UIH",
        ("uCT 760", "uCT 530"),
        (Kernel("B_SOFT_B", 1.25, 0.0, 1.0, 1.5), Kernel("B_SHARP_C", 0.55, 0.65, 2.5, 0.55)),
        (Kernel("H_SOFT_B", 1.25, 0.1, 1.1, 1.5), Kernel("H_SHARP_A", 0.65, 0.5, 2.0, 0.65)),
        intercept=-1024,
        signed=False,
        padding=None,
        explicit=True,
    ),
    "neusoft": Vendor(
        "Neusoft",
        ("NeuViz 128", "NeuViz 16"),
        (Kernel("F20", 1.0, 0.1, 1.3, 1.1), Kernel("F60", 0.6, 0.5, 2.2, 0.6)),
        (Kernel("SF20", 1.0, 0.1, 1.3, 1.1), Kernel("SF40", 0.75, 0.35, 1.7, 0.8)),
        intercept=-1024,
        signed=True,
        padding=-2048,
        explicit=False,
    ),
}


@dataclass(frozen=True)
class Site:
    """Where patients are scanned.

    Attributes:
        vendors: keys of ``VENDORS``.
        noise: factor on the noise of every scan, for other doses.
    """

    vendors: tuple[str, ...]
    noise: float


HOME = "home"
SITES = {HOME: Site(("ge", "philips", "siemens", "toshiba"), 1.0), "other": Site(("canon", "neusoft", "uih"), 1.5)}


def kernels(vendor: str, anatomy: str) -> dict[str, Kernel]:
    """The vendor's kernels for an anatomy, by name."""
    found = VENDORS[vendor]
    return {kernel.name: kernel for kernel in (found.body if anatomy == "trunk" else found.head)}
