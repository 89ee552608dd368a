"""Series from a bucket to hashed folders: ours beside bare s5cmd, interleaved in one run.

    python -m tests.benchmarks.bench_transfer [--rounds 5] [--series 12]

Both read the same real series (LIDC chest, sarcoma; noise where real CT is missing) from a moto server here. Bare
s5cmd brings all of them with one `s5cmd run` and checks nothing. Ours starts one s5cmd per series, two per core at a
time, counts objects and bytes, notes the SHA-256 of every file and gives the folder its name when all is right; the
start of the stage's worker processes, some seconds per shard, is left out. Prints medians and the ratio; quote the
ratio, machines are noisy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from components.cohort.config import CohortConfig
from components.settings import parse, read_yaml
from components.sources.config import AcquireConfig, TransferConfig
from components.sources.series import SeriesJob
from components.sources.transfer import s5cmd
from tests.released import ROOT
from tests.s3 import BUCKET, S3, serving

LIDC = "af9e2c1c-a1d4-4069-b7e9-4a3e835b3aad"
TRANSFER = TransferConfig(attempts=1, backoff_s=0.0, stall_s=30.0, slowest_mb_s=0.1, connections=16)
ACQUIRE = AcquireConfig(
    workers=None, max_memory_gib=4.0, raw="evict", mixed_series="whole", max_unexpected=0, transfer=TRANSFER
)


def series(count: int) -> dict[str, dict[str, bytes]]:
    """Names to files: the LIDC chest under its name in the IDC, and sarcoma series."""
    folder = ROOT.parent / "shared" / "ct" / "dicom"
    if not folder.is_dir():
        noise = np.random.default_rng(0)
        return {f"noise-{n}": {f"{i}.dcm": noise.bytes(400_000) for i in range(60)} for n in range(count)}
    with zipfile.ZipFile(folder / "lidc_idri_0314.zip") as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        found = {LIDC: {Path(name).name: archive.read(name) for name in names}}
    for path in sorted(folder.glob("sts_*"))[: count - 1]:
        found[path.name] = {file.name: file.read_bytes() for file in sorted(path.glob("*.dcm"))}
    return found


def bare(server: S3, rows: list[dict[str, object]], target: Path) -> None:
    commands = "".join(f"cp s3://{row['location']}/* {target}/{row['name']}/\n" for row in rows)
    command = [s5cmd(), "--endpoint-url", server.url, "--no-sign-request", "--log", "error", "run"]
    subprocess.run(command, input=commands, text=True, check=True)


def fetch(job: SeriesJob) -> int:
    return len(job.fetch())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--series", type=int, default=12)
    arguments = parser.parse_args()
    block = {**read_yaml(ROOT / "params.yaml")["wholebody"]["cohort"], "source": "idc"}
    cohort = parse(CohortConfig, block, "wholebody.cohort")
    seconds: dict[str, list[float]] = {"ours": [], "s5cmd": []}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        os.chdir(folder)
        os.environ["CTFOUNDRY_IDC_ENDPOINT"] = server.url
        rows = [server.store(name, files) for name, files in series(arguments.series).items()]
        jobs = [SeriesJob("wholebody", row, [], cohort, ACQUIRE) for row in rows]
        for _ in range(arguments.rounds):
            for name in seconds:
                shutil.rmtree(".ctfoundry", ignore_errors=True)
                shutil.rmtree("bare", ignore_errors=True)
                start = time.perf_counter()
                if name == "ours":
                    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
                        assert sum(pool.map(fetch, jobs)) == sum(job.row["files"] for job in jobs)
                else:
                    bare(server, rows, Path("bare"))
                seconds[name].append(time.perf_counter() - start)
    megabytes = sum(job.bytes for job in jobs) / 1e6
    ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "s5cmd"))
    print(
        f"transfer of {len(rows)} series, {megabytes:.0f} MB from bucket {BUCKET}, {arguments.rounds} rounds: "
        f"ours {megabytes / ours:.1f} MB/s, bare s5cmd {megabytes / theirs:.1f} MB/s, ratio {theirs / ours:.2f}"
    )


if __name__ == "__main__":
    main()
