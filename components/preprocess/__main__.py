"""``python -m components.preprocess --line wholebody --shard 0``."""

from components.command import data_dir, run_stage
from components.preprocess.config import PreprocessConfig
from components.preprocess.masks import masks_by_series
from components.preprocess.stage import preprocess_shard
from components.settings import load_stage
from components.sources.config import AcquireConfig
from components.sources.series import jobs_of
from components.sources.sets import sets_of, sources_of
from components.tables import read_table


def main(line: str, shard: int) -> None:
    sources = sources_of(line)
    acquire = load_stage(AcquireConfig, line, "acquire")
    cohort = data_dir(line, "cohort")
    jobs = jobs_of(line, cohort, shard, sources, acquire)
    preprocess_shard(
        jobs,
        data_dir(line, "acquire", shard),
        read_table(data_dir(line, "screen", shard) / "screened.parquet"),
        load_stage(PreprocessConfig, line, "preprocess"),
        data_dir(line, "preprocess", shard),
        masks_by_series(jobs, cohort, shard, sets_of(line)),
    )


if __name__ == "__main__":
    run_stage("preprocess", "Bring one shard's accepted series into the volume store.", None, sharded=main)
