"""What an image stands on and changes with the lock file only: Debian with Python, and the pinned packages.

Both are made once and kept, under a name that is the hash of all that they are made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import UserError
from components.files import replacing, write_json

EPOCH = 1735689600  # 2025-01-01: of every file in the image, so that no clock is in its bytes
SUITE, PYTHON = "bookworm", (3, 11)  # Debian 12 and its Python
# No apt, no perl modules, no CA certificates: the service installs nothing, runs no scripts and calls nobody.
DEBIAN = ("libgomp1", "libpython3-stdlib", "libstdc++6", "python3-minimal", "tini", "usr-is-merged")
USER, UID = "ctfoundry", 10001
HOOK = f"""\
set -eu
printf '127.0.0.1 localhost\\n::1 localhost\\n' > "$1/etc/hosts"
echo '{USER}:x:{UID}:{UID}::/tmp:/usr/sbin/nologin' >> "$1/etc/passwd"
echo '{USER}:x:{UID}:' >> "$1/etc/group"
install -d -m 700 -o {UID} -g {UID} "$1/state"  # of a gateway; a named volume on it is then that user's
find "$1/usr" "$1/var" -xdev -type f -perm /6000 -exec chmod a-s '{{}}' +
find "$1/usr/share/doc" -type f ! -name copyright -delete
find "$1/usr/share/doc" -type d -empty -delete
cd "$1"
rm -rf usr/share/bash-completion usr/share/info usr/share/lintian usr/share/locale usr/share/man
rm -rf etc/*- etc/hostname etc/resolv.conf var/cache/debconf/*-old var/log/*
"""
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)), "manylinux2014_x86_64")
SITE = "opt/ctfoundry/lib"
# Headers, libraries to link against, tests, compilers of models, databases that nobody chooses: nothing that runs here.
# Torch's share is for CMake.
PRUNED = (
    "torch/_inductor", "sqlalchemy/dialects/m*", "sqlalchemy/dialects/oracle", "pynetdicom/apps",
    "pynetdicom/benchmarks", "bin", "torch/bin", "torch/include", "torch/lib/*test*.so", "torch/share", "torch/test",
    "pydicom/data/test_files", "cv2/data/*.xml", "**/tests", "**/*.a", "**/*.cmake", "**/*.h", "**/*.hpp", "**/*.lib",
    "**/*.pxd", "**/*.pyi", "**/*.pyx", "*.dist-info/RECORD", "*.dist-info/REQUESTED", "*.dist-info/direct_url.json",
)  # fmt: skip
KEPT = ("torch/bin/torch_shm_manager",)  # torch looks for it on import
VARIANTS = ("cpu", "cuda")


@dataclass(frozen=True)
class Packages:
    """The pinned packages as they lie in the image.

    Attributes:
        root: to lie over the image's root; they are below :data:`SITE`.
        wheels: JSON, name to version and SHA-256 of the wheel.
    """

    root: Path
    wheels: Path

    @property
    def site(self) -> Path:
        """The folder that Python imports from."""
        return self.root / SITE


def tool(name: str) -> str:
    """A program's path. Raises UserError where it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise UserError(f"{name}: not found; an image needs it: apt-get install buildah mmdebstrap runc")
    return found


def run(command: Sequence[str | Path], what: str, **variables: str) -> str:
    """What a command prints. Raises UserError with the last line that it says where it fails."""
    environment = {**os.environ, **variables}
    done = subprocess.run([str(part) for part in command], env=environment, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        wrong = [line for line in lines if line.lower().startswith(("error", "e:"))] or lines[-1:] or ["no output"]
        raise UserError(f"{what}: {wrong[-1][:300]}")
    return done.stdout


def debian(place: Path, anew: bool = False) -> Path:
    """``base-<key>.tar`` in ``place``: a root file system with Python and without an installer.

    Args:
        place: where it is kept.
        anew: take Debian's present packages, also where one is kept. Equal bytes for one state of the mirror.
    """
    path = place / f"base-{_key(SUITE, *DEBIAN, HOOK, str(EPOCH))}.tar"

    def make(temporary: Path) -> None:
        command = [tool("mmdebstrap"), "--mode=root", "--variant=essential", "--format=tar", "--quiet"]
        command += [f"--include={','.join(DEBIAN)}", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
        command += [f"--customize-hook={HOOK}", SUITE, str(temporary)]
        run(command, "mmdebstrap", SOURCE_DATE_EPOCH=str(EPOCH))

    return _kept(path, make, anew)


def packages(place: Path, requirements: Path, variant: str = "cpu", index: str | None = None) -> Packages:
    """``packages-<key>`` in ``place``: the pinned packages, without what does not run, compiled.

    Args:
        place: where it is kept.
        requirements: every package with its version, one a line.
        variant: ``cpu``, or ``cuda``, with which torch brings the libraries that it requires.
        index: a package index more, of torch for this variant.

    Raises:
        UserError: a wheel is not to be had, or torch is one of the other variant.
    """
    key = _key(requirements.read_text(), variant, str(PYTHON), *PRUNED, *KEPT, *PLATFORMS)
    path = place / f"packages-{key}"

    def make(temporary: Path) -> None:
        made = Packages(temporary / "root", temporary / "wheels.json")
        made.site.mkdir(parents=True)
        _install(made, requirements, variant, index)
        prune(made.site, PRUNED, KEPT)
        compile_all(made.root, SITE)
        settle(made.root)

    _kept(path, make)
    return Packages(path / "root", path / "wheels.json")


def _install(made: Packages, requirements: Path, variant: str, index: str | None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    command += ["--only-binary", ":all:", "--target", str(made.site), "--report", str(made.wheels)]
    command += ["--python-version", ".".join(map(str, PYTHON)), "--implementation", "cp"]
    command += [word for name in (f"cp{PYTHON[0]}{PYTHON[1]}", "abi3", "none") for word in ("--abi", name)]
    command += [word for name in PLATFORMS for word in ("--platform", name)]
    command += ["--extra-index-url", index] if index else []
    # The file is complete; only torch for CUDA requires more than it says, with exact versions of its own.
    command += ["--no-deps"] if variant == "cpu" else []
    run([*command, "--requirement", str(requirements)], "pip")
    wheels = {}
    for entry in json.loads(made.wheels.read_text())["install"]:
        hashes = entry["download_info"].get("archive_info", {}).get("hashes", {})
        wheels[entry["metadata"]["name"]] = {"version": entry["metadata"]["version"], "sha256": hashes.get("sha256")}
    write_json(made.wheels, wheels)  # without addresses
    require_variant((made.site / "torch" / "version.py").read_text(), variant)


def require_variant(version: str, variant: str) -> None:
    """Raise UserError where torch's ``version.py`` is of a build for other devices than ``variant`` says."""
    said: dict[str, object] = {}
    exec(version, said)
    found = "cpu" if said.get("cuda") is None else "cuda"
    if found != variant:
        raise UserError(
            f"torch {said['__version__']}: the index gives a build for {found}, and the image is for {variant}; name "
            f"an index of torch for {variant} with --index"
        )


def prune(site: Path, patterns: Sequence[str], kept: Sequence[str] = ()) -> None:
    """Remove what matches, but for the files ``kept``, and folders that are then empty."""
    spared = {site / name for name in kept}
    for found in [path for pattern in patterns for path in site.glob(pattern)]:
        files = found.rglob("*") if found.is_dir() and not found.is_symlink() else [found]
        for path in files:
            if path not in spared and (path.is_symlink() or path.is_file()):
                path.unlink()
    for folder in sorted((path for path in site.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def compile_all(root: Path, below: str) -> None:
    """Compile to bytecode that is valid whatever the time of its source: a read-only root keeps none of a run."""
    ours = sys.version_info[:2] == PYTHON
    python = sys.executable if ours else tool(f"python{PYTHON[0]}.{PYTHON[1]}")
    command = [python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/"]
    # A file of another Python's syntax, such as a template, compiles nowhere, and is not imported either.
    subprocess.run([*map(str, command), str(root / below)], check=False, capture_output=True)


def settle(root: Path) -> None:
    """One owner's modes and one time, whatever the umask and the clock of this machine."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def _kept(path: Path, make: Callable[[Path], None], anew: bool = False) -> Path:
    if anew or not path.exists():
        with replacing(path, durable=False) as temporary:
            make(temporary)
    return path


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
