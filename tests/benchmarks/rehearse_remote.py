"""A store of many volumes on a DVC remote in a bucket: how long `dvc add`, `status`, `push`, `pull` and `gc` take.

    python -m tests.benchmarks.rehearse_remote [--volumes 20000] [--shards 20] [--kb 16]

moto serves S3 on 127.0.0.1. The volumes are small files of random bytes, a folder per shard as stage ``preprocess``
leaves them: what grows with their number is measured, not the line to the bucket. Then one shard gains a volume, and
status and push are timed again; last, an empty clone pulls one shard.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.s3 import BUCKET, serving


def dvc(folder: Path, *words: str) -> float:
    """Seconds that a DVC command takes."""
    start = time.perf_counter()
    run = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"dvc {' '.join(words)}: {run.stderr[-2000:]}")
    return time.perf_counter() - start


def tell(what: str, seconds: float, volumes: int) -> None:
    print(f"  {what:44} {seconds:8.1f} s  {seconds / volumes * 1e3:7.2f} ms per volume", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--kb", type=int, default=16)
    arguments = parser.parse_args()
    count, shards = arguments.volumes, arguments.shards
    with tempfile.TemporaryDirectory() as temporary, serving(Path(temporary)) as server:
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "DVC_NO_ANALYTICS": "1"}
        here = Path(temporary) / "project"
        here.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=here, check=True)
        dvc(here, "init", "-q")
        dvc(here, "remote", "add", "-d", "store", f"s3://{BUCKET}/dvc")
        dvc(here, "remote", "modify", "store", "endpointurl", server.url)
        for shard in range(shards):
            folder = here / "data" / str(shard) / "volumes"
            folder.mkdir(parents=True)
            for number in range(count // shards):
                (folder / f"s{shard:04d}{number:012x}.b2nd").write_bytes(os.urandom(arguments.kb * 1024))
        outs = [f"data/{shard}/volumes" for shard in range(shards)]
        print(f"{count} volumes of {arguments.kb} kB in {shards} shards, S3 on 127.0.0.1:")
        tell("dvc add (hash, into the cache)", dvc(here, "add", "-q", *outs), count)
        tell("dvc status", dvc(here, "status", "-q"), count)
        tell("dvc push, all new", dvc(here, "push", "-q"), count)
        tell("dvc push, nothing new", dvc(here, "push", "-q"), count)
        tell("dvc status --cloud", dvc(here, "status", "-q", "--cloud"), count)
        (here / outs[0] / "one_more.b2nd").write_bytes(os.urandom(arguments.kb * 1024))
        tell("dvc add, one volume more in one shard", dvc(here, "add", "-q", outs[0]), count)
        tell("dvc status after that", dvc(here, "status", "-q"), count)
        tell("dvc push of that shard", dvc(here, "push", "-q", outs[0]), count)
        tell("dvc gc --workspace --cloud", dvc(here, "gc", "-q", "--workspace", "--cloud", "--force"), count)
        clone = Path(temporary) / "clone"
        subprocess.run(["git", "add", "-A"], cwd=here, check=True)
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"], cwd=here, check=True)
        subprocess.run(["git", "clone", "-q", str(here), str(clone)], check=True)
        tell("dvc pull of one shard into an empty clone", dvc(clone, "pull", "-q", outs[0]), count // shards)
        print(
            f"  highest memory of a DVC process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.2f} GB"
        )


if __name__ == "__main__":
    main()
