"""``python -m components.curate --line wholebody``."""

from components.command import data_dir, run_stage
from components.curate.config import CurateConfig
from components.curate.stage import curate
from components.settings import load_stage, shards


def main(line: str) -> None:
    folder = data_dir(line, "curate")
    curate(folder.parent, shards(), load_stage(CurateConfig, line, "curate"), folder)


if __name__ == "__main__":
    run_stage("curate", "Judge the volumes and name the training set.", main)
