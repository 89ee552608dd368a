"""``python -m components.curate.drift``, stage ``drift``: the training set beside the champion's.

Suite *release* is judged apart from curation, so that curation depends on no champion.
"""

import logging

from components.command import data_dir, run_stage
from components.curate.config import CurateConfig
from components.files import read_json, write_json
from components.quality import drift
from components.settings import load_stage

log = logging.getLogger(__name__)


def main(line: str) -> None:
    """Write ``data/<line>/drift/drift.json``. Raises UserError where a feature that must not drift did."""
    folder = data_dir(line, "drift")
    profile = read_json(data_dir(line, "curate") / "profile.json")
    config = load_stage(CurateConfig, line, "curate").drift
    found = drift.judge_release(profile, drift.champion_of(folder.parent), config)
    write_json(folder / "drift.json", found)
    if not found["judged"]:
        log.info("suite %s not judged: %s", found["suite"], found["why"])
    for warning in found["warnings"]:
        log.warning("expected %s", warning)


if __name__ == "__main__":
    run_stage("drift", "Hold the training set's profile beside the champion's.", main)
