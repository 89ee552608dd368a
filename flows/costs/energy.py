"""Meters of energy that a machine may have: of its processors (RAPL) and of its GPUs (NVML)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6


class Rapl:
    """The meters of the processors' packages: a stage's share is its share of the machine's busy processor time, for
    they know nothing of processes."""

    def __init__(self, domains: list[Path]) -> None:
        self._domains = {domain: _microjoules(domain) for domain in domains}
        self._ranges = {domain: int((domain / "max_energy_range_uj").read_text()) for domain in domains}
        self._metered = 0.0
        self._busy = _busy()

    @classmethod
    def here(cls, folder: Path = POWERCAP) -> Rapl | None:
        """None where no package has a meter, or we may not read it."""
        try:
            packages = [path for path in sorted(folder.glob("intel-rapl:*")) if _name(path).startswith("package")]
            return cls(packages) if packages else None
        except (OSError, ValueError):
            return None

    def joules(self, cpu_seconds: float) -> float | None:
        """What a stage that has used so many processor seconds, since this meter was made, has drawn."""
        try:
            for domain, before in self._domains.items():
                now = _microjoules(domain)
                self._metered += (now - before) % (self._ranges[domain] + 1) / 1e6  # the counter begins again
                self._domains[domain] = now
        except (OSError, ValueError):
            return None
        busy = _busy() - self._busy
        return self._metered * min(1.0, cpu_seconds / busy) if busy > 0 else 0.0


def _name(domain: Path) -> str:
    return (domain / "name").read_text().strip()


def _microjoules(domain: Path) -> int:
    return int((domain / "energy_uj").read_text())


def _busy() -> float:
    """Seconds of all processors of this machine that were not idle."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


class Gpus:
    """The GPUs that NVIDIA's driver knows: which a stage's processes hold, and what these draw meanwhile."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self._nvml, self._handles = nvml, handles
        self._before = [self._millijoules(handle) for handle in handles]
        self._joules: float | None = None

    @classmethod
    def here(cls) -> Gpus | None:
        """None where there is no GPU, or no driver."""
        import pynvml

        try:
            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            return None
        return cls(pynvml, handles) if handles else None

    def look(self, pids: set[int], seconds: float) -> tuple[float, float | None]:
        """GPU seconds of the last ``seconds``, and joules since the beginning of the GPUs that were held; None where no
        GPU that was held has a meter."""
        held = 0
        for number, handle in enumerate(self._handles):
            now, before = self._millijoules(handle), self._before[number]
            self._before[number] = now
            users = set[int]()
            with suppress(self._nvml.NVMLError):
                users = {process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
            if not users & pids:
                continue
            held += 1
            if now is not None and before is not None:
                self._joules = (self._joules or 0.0) + (now - before) / 1e3
        return held * seconds, self._joules

    def _millijoules(self, handle: Any) -> int | None:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except self._nvml.NVMLError:
            return None
