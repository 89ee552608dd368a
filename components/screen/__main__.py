"""``python -m components.screen --line wholebody --shard 0``."""

from components.command import cohort_slice, data_dir, run_stage
from components.screen.config import ScreenConfig
from components.screen.stage import screen_shard
from components.settings import load_stage
from components.tables import read_table


def main(line: str, shard: int) -> None:
    cohort = read_table(cohort_slice(data_dir(line, "cohort"), shard) / "cohort.parquet")
    config = load_stage(ScreenConfig, line, "screen")
    screen_shard(data_dir(line, "acquire", shard), cohort, shard, config, data_dir(line, "screen", shard))


if __name__ == "__main__":
    run_stage("screen", "Judge one shard's headers.", None, sharded=main)
