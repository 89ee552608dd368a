"""``python -m components.cohort --line wholebody``."""

from components.cohort.config import CohortConfig
from components.cohort.stage import external_patients, make_cohort
from components.command import data_dir, run_stage
from components.settings import load_part, load_stage, shards
from components.sources.lidc import LidcPin
from components.sources.sets import sets_of


def main(line: str) -> None:
    config = load_stage(CohortConfig, line, "cohort")
    held_out = external_patients(load_part(LidcPin, line, "evaluate").lidc_nodules)
    make_cohort(line, config, len(shards()), held_out, data_dir(line, "cohort"), sets_of(line))


if __name__ == "__main__":
    run_stage("cohort", "List every series of the source and of the evaluation set.", main)
