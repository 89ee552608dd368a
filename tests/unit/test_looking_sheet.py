"""The contact sheet shows every reason before it shows one twice, and accepted series from the whole table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.image import imread

from components.ct.store import Volume, write_volume
from components.looking.sheet import chosen, contact_sheet


def curated(reasons: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"series": [f"s{n:03d}" for n in range(len(reasons))], "reason": reasons,
                         "accepted": [not reason for reason in reasons]})  # fmt: skip


def test_rejected_by_turns_and_accepted_from_the_whole_table() -> None:
    table = curated(["noise"] * 10 + ["no_body"] + [""] * 100)
    stored = {series: Path(series) for series in table["series"]}
    rows = chosen(table, stored, tiles=8)
    assert rows["reason"].tolist() == ["no_body", "noise", "noise", "noise", "", "", "", ""]
    assert rows["series"].tolist()[4:] == ["s011", "s044", "s077", "s110"]
    del stored["s010"]  # rejected by its headers: it was never decoded
    assert "no_body" not in chosen(table, stored, tiles=8)["reason"].tolist()


def test_the_sheet_is_drawn_where_there_is_something_to_draw(tmp_path: Path) -> None:
    table, target = curated(["hu_calibration;noise", ""]), tmp_path / "sheet.png"
    assert contact_sheet(table, tmp_path / "store", target, "soft") == 0
    assert not target.exists()
    for series, axes in (("s000", [3.0, 1.0, 1.0]), ("s001", [1.0, 1.0, 3.0])):
        hu = np.full((20, 30, 40), 60, np.int16)
        write_volume(tmp_path / "store/0/volumes" / f"{series}.b2nd", Volume(hu, np.diag([*axes, 1.0])), {})
    assert contact_sheet(table, tmp_path / "store", target, "soft") == 2
    picture = imread(target)
    assert (np.ptp(picture[:, :, :3], axis=2) > 0.4).any(), "fates in colour"
    assert (picture[:, :, 0] > 0.5).any()
