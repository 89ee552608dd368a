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
}


def kernels(vendor: str, anatomy: str) -> dict[str, Kernel]:
    """The vendor's kernels for an anatomy, by name."""
    found = VENDORS[vendor]
    return {kernel.name: kernel for kernel in (found.body if anatomy == "trunk" else found.head)}
