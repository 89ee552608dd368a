"""``python -m components.summary --line wholebody``: the one-page summary and Data Docs, for people to browse."""

import logging
from pathlib import Path

from components.cohort.config import CohortConfig
from components.cohort.suite import cohort_suite
from components.command import data_dir, run_stage
from components.curate.config import CurateConfig
from components.curate.suite import volumes_suite
from components.looking.sheet import contact_sheet
from components.looking.volume import WINDOWS
from components.models.config import InputConfig
from components.quality import drift
from components.quality.judge import write_data_docs
from components.quality.offline import write_index
from components.screen.config import ScreenConfig
from components.screen.suite import headers_suite
from components.settings import StageConfig, load_part, load_stage, shards
from components.summary import page as summary
from components.tables import read_table

log = logging.getLogger(__name__)


def _window(line: str) -> str:
    """Under which of the known windows people look at a line: one that its encoder sees through, or the narrowest that
    holds most of those, or soft tissue's."""
    seen = load_part(_Seen, line, "pretrain").input.windows
    like = [name for name, window in WINDOWS.items() if window in seen]
    narrow = sorted(WINDOWS, key=lambda name: WINDOWS[name][1])
    like += [name for name in narrow if 2 * sum(_within(one, WINDOWS[name]) for one in seen) > len(seen)]
    return next(iter(like), "soft")


def _within(inner: tuple[float, float], outer: tuple[float, float]) -> bool:
    """Of windows, (centre, width) in HU."""
    return abs(inner[0] - outer[0]) + inner[1] / 2 <= outer[1] / 2


class _Seen(StageConfig):
    input: InputConfig


def main(line: str) -> None:
    """Write ``data_docs``, ``contact_sheet.png`` and ``quality.html`` to ``reports/<line>``."""
    screen, curate = load_stage(ScreenConfig, line, "screen"), load_stage(CurateConfig, line, "curate")
    folder = Path("reports") / line
    cohort = read_table(data_dir(line, "cohort") / "cohort.parquet")
    cohort = cohort.assign(accepted=(cohort["reason"] == "").astype(float), shards=len(shards()))
    selected = cohort_suite(
        load_stage(CohortConfig, line, "cohort"), len(shards()), len(cohort), bool((cohort["source"] == "idc").any())
    )
    tables = [("cohort", cohort, selected)]
    for shard in shards():
        screened = read_table(data_dir(line, "screen", shard) / "screened.parquet")
        screened["accepted"] = screened["accepted"].astype(float)
        tables.append((f"headers_shard_{shard}", screened, headers_suite(screen, len(screened))))
    volumes = read_table(data_dir(line, "curate") / "volumes.parquet")
    volumes["accepted"] = volumes["accepted"].astype(float)
    tables.append(("volumes", volumes, volumes_suite(curate, len(volumes))))
    index = folder / "data_docs" / "gx" / "uncommitted" / "data_docs" / "local_site" / "index.html"
    data, docs = data_dir(line, "curate").parent, index.relative_to(folder).as_posix()
    facts = summary.read_facts(data, shards(), curate.drift, docs)
    before = summary.champion_profile(facts)[0]
    if facts.profile and before:
        drifts = drift.compare(facts.profile, before, curate.drift)
        tables.append((drift.RELEASE, drift.table(drifts), drift.release(drifts, curate.drift)))
    write_data_docs(tables, folder / "data_docs")
    page = folder / "quality.html"
    write_index(index.parent, {view.name: view.why for view in summary.suite_views(facts) if view.why}, page)
    sheet = folder / "contact_sheet.png"
    shown = contact_sheet(facts.curated, data / "preprocess", sheet, _window(line))
    summary.write_summary(facts, page, sheet.name if shown else "")
    log.info("summary: %s; Data Docs: %s", page, index)


if __name__ == "__main__":
    run_stage("quality", "Write the one-page summary and Data Docs of the judged tables.", main)
