"""``python -m components.quality --line wholebody``: Data Docs of the line's judged tables, for people to browse."""

import logging
from pathlib import Path

from components.command import data_dir, run_stage
from components.curate.config import CurateConfig
from components.files import read_table
from components.params import load_stage, shards
from components.quality import suites
from components.quality.judge import write_data_docs
from components.screen.config import ScreenConfig

log = logging.getLogger(__name__)


def main(line: str) -> None:
    screen, curate = load_stage(ScreenConfig, line, "screen"), load_stage(CurateConfig, line, "curate")
    tables = []
    for shard in shards():
        screened = read_table(data_dir(line, "screen", shard) / "screened.parquet")
        screened["accepted"] = screened["accepted"].astype(float)
        tables.append((f"headers_shard_{shard}", screened, suites.headers(screen, len(screened))))
    volumes = read_table(data_dir(line, "curate") / "volumes.parquet")
    volumes["accepted"] = volumes["accepted"].astype(float)
    tables.append(("volumes", volumes, suites.volumes(curate, len(volumes))))
    index = write_data_docs(tables, Path("reports") / line / "data_docs")
    log.info("Data Docs: %s", index)


if __name__ == "__main__":
    run_stage("quality", "Build Data Docs from the judged tables.", main)
