"""The service under load, beside the floor: reading and the encoder alone, in a process without HTTP.

    python -m tests.benchmarks.bench_load [--release releases/wholebody] [--scan series.zip] [--minutes 5]
    python -m tests.benchmarks.bench_load --minutes 0.5 --rounds 8 --per-client 2 --nuisance-seconds 12   # 3 minutes

The service is started as in production (``bentoml serve``). Four phases:

1. The floor and one client, by turns: what HTTP, the queue and a process for each file cost.
2. 1, 4, 8 and 16 clients that ask again as soon as they are answered. 16 fill the queue: the capacity.
3. Requests that come at twice the rate of the answers at capacity, whatever becomes of those before.
4. Four clients beside others that do harm: slow uploads, unfinished headers, hang-ups, a reader that is killed.

``--batched`` asks instead what there would be to gain: scans of several requests in one step of the encoder, and
bfloat16, each beside what the service does now, by turns, as ratios of medians.

Without a release a small one is made, with an untrained encoder; without a scan a phantom. It ends with 1 where a bound
is broken that is no matter of speed: a status other than 200 and 429, what is left of requests.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from components.bundle.manifest import read_manifest, write_manifest
from components.files import write_json
from tests.benchmarks.nuisances import NUISANCES, nobody
from tests.released import ROOT, write_release
from tests.served import Served, served

LEVELS = (1, 4, 8, 16)
BESIDE = 4  # clients beside those that do harm
SENDERS = 96  # threads that send what comes at twice the capacity: the queue, the uploads, and those sent away
TIMES_FLOOR, TIMES_CAPACITY, GROWTH = 1.5, 3.0, 1.05  # bounds


@dataclass
class Taken:
    """Answers, as clients saw them: seconds of those with 200, and how many of each status; an exception's name in
    place of a status where the connection broke."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0

    def ask(self, client: httpx.Client, url: str, content: bytes, counted: bool = True) -> None:
        """Send one scan to ``/embed``."""
        begin = time.perf_counter()
        try:
            status = str(client.post(f"{url}/embed", content=content).status_code)
        except httpx.TransportError as error:
            status = type(error).__name__
        if counted:
            self.statuses[status] += 1
            if status == "200":
                self.seconds.append(time.perf_counter() - begin)

    def at(self, share: float) -> float:
        """A quantile of the seconds."""
        return float(np.quantile(self.seconds, share)) if self.seconds else float("nan")

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.wall


class Floor:
    """A process that has the release, and reads and embeds a scan each time it is asked to."""

    def __init__(self, release: Path, scan: Path) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.bench_load", "--release", str(release), "--scan", str(scan)]
        self._process = subprocess.Popen(
            [*command, "--floor"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def once(self) -> float:
        """Seconds of one scan."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def be_floor(release: Path, scan: Path) -> None:
    """The process of :class:`Floor`: the work of a child of the service, under its settings, and nothing round it."""
    import torch

    torch.set_num_threads(1)  # as serving.worker does; the embedder sets its own number
    from serving.embedding import embed_file, open_release

    bundle = open_release(release)
    for _ in sys.stdin:
        begin = time.perf_counter()
        embed_file(scan, bundle).to_json()
        print(time.perf_counter() - begin, flush=True)


def batched(release: Path, scan: Path, rounds: int) -> None:
    """How long the encoder takes for scans of several requests at once, and in bfloat16."""
    import torch

    torch.set_num_threads(1)
    from components.models.embed import fixed_threads
    from serving.embedding import DEFAULT_LIMITS, open_release, read_scan

    bundle = open_release(release)
    embedder = bundle.embedder
    begin = time.perf_counter()
    shown = torch.as_tensor(embedder.show(read_scan(scan, bundle, DEFAULT_LIMITS).volume))
    print(f"reading and standardising: {time.perf_counter() - begin:.3f} s; shown to the encoder: {tuple(shown.shape)}")
    crops = embedder.config.input.sees == "crop"

    def seconds(copies: int, at_once: int, lower: bool = False) -> float:
        """Of so many scans, so many at once."""
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            for _ in range(copies // at_once):
                several = torch.cat([shown] * at_once)
                if crops:  # which are batched already, those of one scan
                    embedder.embed_crops(several.numpy())
                else:
                    with torch.inference_mode(), fixed_threads():
                        embedder.vectors(several)
        return time.perf_counter() - begin

    ways = {"one at a time": (4, 1, False), "two at once": (4, 2, False), "four at once": (4, 4, False),
            "one at a time, bfloat16": (4, 1, True)}  # fmt: skip
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(seconds(*way))
    first = float(np.median(taken["one at a time"]))
    for name, of in taken.items():
        print(f"encoder, 4 scans, {name:25}{np.median(of):8.3f} s  {first / np.median(of):.2f} times as fast")


def by_turns(service: Served, release: Path, scan: Path, rounds: int) -> tuple[Taken, Taken]:
    """The floor's seconds, and those of one client."""
    alone, one, content = Taken(), Taken(), scan.read_bytes()
    floor = Floor(release, scan)
    with httpx.Client(timeout=600) as client:
        for number in range(rounds + 1):  # the first of each is not counted
            seconds = floor.once()
            one.ask(client, service.url, content, counted=number > 0)
            if number > 0:
                alone.seconds.append(seconds)
    floor.close()
    alone.wall, one.wall = sum(alone.seconds), sum(one.seconds)
    return alone, one


def closed_loop(service: Served, content: bytes, clients: int, goes_on: Callable[[int], bool]) -> Taken:
    """Clients that send again as soon as they are answered, while ``goes_on`` says so of the number that one has sent.
    Their first answers, of a queue that fills, are not counted."""
    taken, lock = Taken(), threading.Lock()

    def client() -> None:
        mine, number = Taken(), 0
        with httpx.Client(timeout=600) as one:
            while goes_on(number):
                mine.ask(one, service.url, content, counted=number > 0)
                number += 1
        with lock:
            taken.seconds += mine.seconds
            taken.statuses += mine.statuses

    begin = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.wall = (time.perf_counter() - begin) * len(taken.seconds) / max(1, len(taken.seconds) + clients)
    return taken


def open_loop(service: Served, content: bytes, rate: float, seconds: float, requests: int) -> Taken:
    """Requests at a rate, whatever becomes of those before, for at least so long and so many."""
    taken, own = Taken(), threading.local()

    def send() -> None:
        if not hasattr(own, "client"):
            own.client = httpx.Client(timeout=600)
        taken.ask(own.client, service.url, content)  # appending and counting is one step of the interpreter each

    begin, number = time.perf_counter(), 0
    with ThreadPoolExecutor(SENDERS) as pool:
        while number < requests or time.perf_counter() < begin + seconds:
            time.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            pool.submit(send)
            number += 1
        taken.wall = time.perf_counter() - begin
    return taken


@contextmanager
def memory_of(service: Served) -> Iterator[list[int]]:
    """Resident bytes of the processes that stay, every second."""
    stays, over, samples = set(service.family()), threading.Event(), list[int]()

    def sample() -> None:
        while not over.wait(1):
            samples.append(sum(size for pid, size in service.family().items() if pid in stays))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


class Report:
    """The table, and what of the bounds is broken."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        print(f"{'':38}{'answers':>8}{'p50 s':>9}{'p95 s':>9}{'a second':>10}")

    def row(self, name: str, taken: Taken, beside: str = "") -> None:
        rate = f"{taken.rate:10.2f}" if taken.wall else f"{'':10}"
        line = f"{name:38}{len(taken.seconds):8}{taken.at(0.5):9.3f}{taken.at(0.95):9.3f}{rate}  {beside}"
        print(line.rstrip(), flush=True)

    def bound(self, what: str, value: float, most: float) -> str:
        return f"{what} {value:.2f}, at most {most:g}: {'kept' if value <= most else 'BROKEN'}"

    def require(self, what: str, holds: bool) -> None:
        if not holds:
            self.broken.append(what)

    def statuses(self, name: str, taken: Taken, allowed: set[str]) -> str:
        self.require(f"{name}: {dict(taken.statuses)}", set(taken.statuses) <= allowed)
        return ", ".join(f"{number} x {status}" for status, number in sorted(taken.statuses.items()))


def levels(report: Report, service: Served, content: bytes, floor: Taken, arguments: argparse.Namespace) -> Taken:
    """Phase 2; what the last level took."""
    for clients in LEVELS:
        count = max(arguments.per_client, -(-arguments.rounds // clients)) + 1
        taken = closed_loop(service, content, clients, lambda number, count=count: number < count)  # type: ignore[misc]
        told = report.statuses(f"{clients} clients", taken, {"200"})
        ratio = taken.at(0.95) / (clients * floor.at(0.5))
        clients_told = f"{clients} client{'s' if clients > 1 else ''}"
        report.row(clients_told, taken, f"{told}; p95 {ratio:.2f} x {clients} x the floor's p50")
    return taken


def overload(report: Report, service: Served, content: bytes, capacity: Taken, arguments: argparse.Namespace) -> None:
    """Phase 3."""
    rate = 2 * capacity.rate
    with memory_of(service) as samples:
        taken = open_loop(service, content, rate, 60 * arguments.minutes, arguments.requests)
    told = report.statuses("twice the capacity", taken, {"200", "429"})
    report.row(f"twice the capacity, {rate:.2f} a second", taken, told)
    print("  " + report.bound("p95 of the accepted, times that of 16 clients:", taken.at(0.95) / capacity.at(0.95),
                              TIMES_CAPACITY))  # fmt: skip
    part = max(1, len(samples) // 10)
    first, last = (float(np.median(part_of)) for part_of in (samples[:part], samples[-part:]))
    mib = [f"{size / 2**20:.0f}" for size in (first, last, max(samples))]
    sizes = f"{mib[0]} MiB in the first tenth, {mib[1]} in the last, {mib[2]} at most"
    print(f"  memory over {sum(taken.statuses.values())} requests: {sizes}; "
          f"{report.bound('ratio', last / first, GROWTH)}", flush=True)  # fmt: skip
    report.require("memory grows", last <= GROWTH * first)


def beside_others(report: Report, service: Served, content: bytes, seconds: float) -> None:
    """Phase 4."""
    before = None
    for name, nuisance in {"nobody else": nobody, **NUISANCES}.items():
        with nuisance(service, content) as told:
            end = time.perf_counter() + seconds
            taken = closed_loop(service, content, BESIDE, lambda _: time.perf_counter() < end)  # noqa: B023
        before = before or taken
        statuses = report.statuses(f"beside {name}", taken, {"200"})
        ratio = f"p95 {taken.at(0.95) / before.at(0.95):.2f} x" if before is not taken else ""
        report.row(f"{BESIDE} clients, {name}", taken, "; ".join(filter(None, (statuses, ratio, told()))))


def require_nothing_left(report: Report, service: Served, processes: int) -> None:
    """In the end: no file, no child, nobody in the queue."""
    deadline = time.monotonic() + 30
    while (service.left() or len(service.family()) > processes) and time.monotonic() < deadline:
        time.sleep(0.2)
    figures = service.figures()
    held = {name: figures[f"ctfoundry_{name}"] for name in ("uploads", "waiting", "working")}
    report.require(f"temporary files are left: {service.left()}", service.left() == [])
    report.require(f"processes: {len(service.family())}, before {processes}", len(service.family()) == processes)
    report.require(f"places are held: {held}", not any(held.values()))
    print(f"left: {len(service.left())} temporary files, {len(service.family()) - processes} processes, "
          f"{sum(held.values()):.0f} places; {len(figures)} series of figures")  # fmt: skip


def made_release(folder: Path) -> Path:
    write_release(folder)
    write_json(folder / "note.json", {"of": "a benchmark"})
    write_manifest(folder, "wholebody", "ctfoundry-wholebody", {"code": "0" * 64})
    return folder


def made_scan(folder: Path) -> Path:
    """A phantom's series as a zip."""
    command = [sys.executable, "-m", "components.sources.phantom", "--out", str(folder / "phantoms"), "--patients", "1"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (series,) = (folder / "phantoms").iterdir()
    return Path(shutil.make_archive(str(folder / "scan"), "zip", series))


def measure(release: Path, scan: Path, arguments: argparse.Namespace) -> list[str]:
    """All phases; what is broken."""
    content = scan.read_bytes()
    cores, at_once = len(os.sched_getaffinity(0)), os.environ.get("CTFOUNDRY_CONCURRENCY", "1")
    print(f"release {read_manifest(release).digest[:12]}, scan of {len(content) / 1e6:.1f} MB, {cores} cores, "
          f"{at_once} file at a time, load {os.getloadavg()[0]:.1f} before")  # fmt: skip
    report = Report()
    with served(release) as service:
        processes = len(service.family())
        floor, one = by_turns(service, release, scan, arguments.rounds)
        report.row("reading and the encoder alone", floor)
        kept = report.bound("p95, times the floor's:", one.at(0.95) / floor.at(0.95), TIMES_FLOOR)
        report.row("/embed, one client, by turns", one, f"{kept} (p50 {one.at(0.5) / floor.at(0.5):.2f})")
        capacity = levels(report, service, content, floor, arguments)
        overload(report, service, content, capacity, arguments)
        beside_others(report, service, content, arguments.nuisance_seconds)
        Taken().ask(httpx.Client(timeout=600), service.url, content)  # the reader that was killed last is started anew
        require_nothing_left(report, service, processes)
    return report.broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, help="a release folder (default: a small one is made)")
    parser.add_argument("--scan", type=Path, help="what is sent (default: the zip of a phantom)")
    parser.add_argument("--rounds", type=int, default=40, help="of the floor and one client; least answers of a level")
    parser.add_argument("--per-client", type=int, default=6, help="answers of each client of a level, at least")
    parser.add_argument("--minutes", type=float, default=5.0, help="at twice the capacity, at least")
    parser.add_argument("--requests", type=int, default=0, help="at twice the capacity, at least, such as 1000")
    parser.add_argument("--nuisance-seconds", type=float, default=40.0, help="beside each that does harm")
    parser.add_argument("--batched", action="store_true", help="the encoder alone, several scans at once")
    parser.add_argument("--floor", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.floor:
        be_floor(arguments.release, arguments.scan)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or the service that was started would go on
    with tempfile.TemporaryDirectory() as temporary:
        scan = arguments.scan or made_scan(Path(temporary))
        release = arguments.release or made_release(Path(temporary) / "wholebody")
        if arguments.batched:
            batched(release, scan, arguments.rounds)
            return
        broken = measure(release.absolute(), scan.absolute(), arguments)
    for line in broken:
        print(f"BROKEN: {line}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
