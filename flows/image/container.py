"""A container of an image as production starts it, by runc: read-only root, any uid, no capabilities, no network."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.files import write_json
from flows.image.parts import tool

UID = 54321  # nobody's: OpenShift gives such
MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/sched_debug", "/proc/timer_list", "/sys/firmware")
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class Ended:
    """How a container ended: exit status, and what it said on standard output and standard error."""

    status: int
    said: str


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine in the container."""

    source: Path
    target: str
    writable: bool = False


def run_container(
    root: Path,
    config: Mapping[str, Any],
    command: Sequence[str],
    mounts: Sequence[Mount] = (),
    variables: Mapping[str, str] | None = None,
    seconds: int = 600,
) -> Ended:
    """Run a command in a container and wait for its end.

    Args:
        root: the image's root file system.
        config: OCI's image configuration: environment and working folder come from it.
        command: the whole of it.
        mounts: what of this machine is to be seen.
        variables: set beside the image's.
        seconds: after which it is killed.

    Raises:
        UserError: it has not ended in time.
    """
    runc, name = tool("runc"), f"ctfoundry-{os.getpid()}-{os.urandom(4).hex()}"
    with tempfile.TemporaryDirectory(prefix="ctfoundry-container-") as folder:
        write_json(Path(folder) / "config.json", specification(root, config, command, mounts, variables or {}))
        start = [runc, "--root", f"{folder}/state", "run", "--bundle", folder, name]
        try:
            done = subprocess.run(
                start, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UserError(f"image: {' '.join(command)[:80]}: not done in {seconds} s") from None
        finally:
            subprocess.run([runc, "--root", f"{folder}/state", "delete", "--force", name], capture_output=True)
    return Ended(done.returncode, done.stdout.decode(errors="replace"))


def specification(
    root: Path, config: Mapping[str, Any], command: Sequence[str], mounts: Sequence[Mount], variables: Mapping[str, str]
) -> dict[str, Any]:
    """OCI's runtime configuration, as the strictest of orchestrators makes it of an image."""
    environment = {**dict(entry.split("=", 1) for entry in config["config"]["Env"]), **variables}
    scratch = ["nosuid", "nodev", "mode=1777"]
    placed = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*scratch, "size=65536k"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": scratch},
    ]
    for mount in mounts:
        options = ["bind", "rw" if mount.writable else "ro", "nosuid", "nodev"]
        source = str(mount.source.resolve())
        placed.append({"destination": mount.target, "type": "bind", "source": source, "options": options})
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": UID, "gid": UID},
            "args": list(command),
            "env": [f"{name}={value}" for name, value in sorted(environment.items())],
            "cwd": config["config"]["WorkingDir"],
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": placed,
        "linux": {
            # A network of its own has a loopback and nothing else.
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
        },
    }
