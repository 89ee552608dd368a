"""Which arithmetic the numerical libraries use: last bits must not depend on what a processor happens to offer.

OpenBLAS, oneDNN, MKL, ATen, OpenCV, NumPy and Arrow each pick kernels by the processor's type, and these add in
different orders. They read their settings when they are loaded, so these stand in the environment before the first of
them is imported: ``components/__init__.py`` sees to that.

``machine`` (always): NumPy's and SciPy's OpenBLAS use one kernel, whose speed matters nowhere here. Equal bytes on the
same kind of processor, see :func:`kind`.
``portable`` (a line's ``reproducible``): all libraries are held to AVX2, which x86-64 processors have had since 2013,
and MKL to code that is the same for every vendor. Equal bytes on all of them, at a cost: see infra/README.md.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from functools import cache
from pathlib import Path

from components.errors import UserError

VARIABLE = "CTFOUNDRY_REPRODUCIBLE"
MACHINE, PORTABLE = "machine", "portable"
CPUINFO = Path("/proc/cpuinfo")
NEEDED = frozenset({"avx2", "fma"})
ALWAYS = {"OPENBLAS_CORETYPE": "Haswell"}
HELD_TO_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    # MKL's own AVX2 code differs between vendors: seen with emulated processors.
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OPENCV_IPP": "avx2",
    "ARROW_USER_SIMD_LEVEL": "AVX2",
}
# Named only where they exist: OpenCV warns of others.
OPENCV_VARIABLE = "OPENCV_CPU_DISABLE"
OPENCV_BEYOND = {"avx512f": "AVX512F", "avx512dq": "AVX512-SKX"}
LEVELS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


@cache
def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text()
    except OSError:
        return ""


@cache
def _processor() -> tuple[str, frozenset[str]]:
    """Vendor and flags of the processor; empty where the system does not tell."""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in _cpuinfo().splitlines())}
    return facts.get("vendor_id", ""), frozenset(facts.get("flags", "").split())


def _holds_avx2() -> bool:
    return platform.machine() == "x86_64" and _processor()[1] >= NEEDED


def _arm_part() -> str:
    """What tells ARM's processors apart: numbers of the implementer and of the part."""
    found = dict(re.findall(r"^CPU (implementer|part)\s*: (\S+)$", _cpuinfo(), flags=re.MULTILINE))
    return " ".join(found.values())


def kind() -> str:
    """The kind of processor on which ``machine`` promises equal bytes, such as ``x86_64 AuthenticAMD avx2``."""
    vendor, flags = _processor()
    level = next((level for level in LEVELS if level in flags), "") or _arm_part()
    return " ".join(filter(None, (platform.machine(), vendor, level)))


def promised(mode: str) -> str:
    """Where outputs made here in ``mode`` are the same bytes."""
    return f"{PORTABLE}: any x86_64 with avx2" if mode == PORTABLE else f"{MACHINE}: {kind()}"


def variables(mode: str) -> dict[str, str]:
    """What the environment of a process holds that computes in ``mode``; nothing on a processor without AVX2."""
    if not _holds_avx2():
        return {}
    if mode != PORTABLE:
        return dict(ALWAYS)
    beyond = [name for flag, name in OPENCV_BEYOND.items() if flag in _processor()[1]]
    disabled = {OPENCV_VARIABLE: ",".join(beyond)} if beyond else {}
    return {**ALWAYS, **HELD_TO_AVX2, **disabled, VARIABLE: PORTABLE}


def mode() -> str:
    """The mode of this process."""
    return os.environ.get(VARIABLE, MACHINE)


def pin() -> None:
    """Hold this process, and those that it starts, to its mode; values of the user's own would make other bytes."""
    os.environ.update(variables(mode()))


def enter(wanted: str) -> None:
    """Begin this command again where it was started in another mode: its libraries are loaded already.

    Raises:
        UserError: ``portable`` on a processor without AVX2, or not an x86-64 one.
    """
    if wanted == PORTABLE and not _holds_avx2():
        raise UserError(
            f"reproducible: portable is not possible on this processor ({kind()}): it needs x86-64 with AVX2 and FMA; "
            "use machine"
        )
    if wanted == mode():
        return
    for name in (VARIABLE, OPENCV_VARIABLE, *HELD_TO_AVX2):
        os.environ.pop(name, None)
    os.environ.update(variables(wanted))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
