"""``python -m components.acquire --line wholebody --shard 0``."""

from components.acquire.stage import acquire_shard
from components.command import data_dir, run_stage
from components.settings import load_stage
from components.sources.config import AcquireConfig
from components.sources.sets import sources_of


def main(line: str, shard: int) -> None:
    acquire_shard(
        line,
        shard,
        data_dir(line, "cohort"),
        sources_of(line),
        load_stage(AcquireConfig, line, "acquire"),
        data_dir(line, "acquire", shard),
    )


if __name__ == "__main__":
    run_stage("acquire", "Bring one shard's series in and write its receipt.", None, sharded=main)
