"""``ctfoundry index``: the vectors of a line's scans as one file, in which a service finds those most like a scan."""

from __future__ import annotations

import argparse
from pathlib import Path

from components.errors import UserError
from flows.lines import add_line


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ctfoundry index``."""
    parser.set_defaults(run=run)
    add_line(parser)
    parser.add_argument("--out", type=Path, required=True, help="file to write, such as cases.safetensors")
    parser.add_argument(
        "--role", choices=("all", "pretrain", "evaluation"), default="all",
        help="scans that were pretrained on, those that releases are evaluated on, or all (default)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Embed the accepted scans of the line's store and write them."""
    import numpy as np

    from components.ct.store import StoredVolume
    from components.files import require_file_name
    from components.progress import track
    from components.tables import read_table
    from serving.asking import INDEX_VARIABLE
    from serving.embedding import open_release
    from serving.nearest import Index, Indexed, labels_of

    require_file_name(arguments.out)
    bundle = open_release(Path("releases") / arguments.line)
    curated = Path("data") / arguments.line / "curate"
    if not (curated / "curated.parquet").is_file():
        raise UserError(f"line {arguments.line}: no scans in {curated}; run `make release` or `dvc pull` first")
    rows = read_table(curated / "curated.parquet")
    rows = rows[rows["accepted"] & (rows["status"] == "accepted")].sort_values("series")
    if arguments.role != "all":
        rows = rows[rows["role"] == arguments.role]
    if rows.empty:
        raise UserError(f"line {arguments.line}: no accepted scan of role {arguments.role}")
    known = read_table(curated / "annotations.parquet")
    by_series = {str(series): of for series, of in known[known["present"]].groupby("series")}
    cases, vectors = [], []
    for row in track(rows.to_dict("records"), [1] * len(rows), "embedding"):
        path = Path(row["volume"])
        if not path.is_file():
            raise UserError(f"volume {path.name}: not in the store; run `dvc checkout` or `dvc pull`")
        vectors.append(bundle.embedder.embed_volume(StoredVolume(path)))
        told = by_series.get(str(row["series"]), known[:0])
        labels = labels_of(list(zip(told["kind"], told["structure"], strict=True)))
        cases.append(Indexed(row["series"], row["patient"], row["collection"], labels))
    Index(bundle.manifest.digest, tuple(cases), np.stack(vectors).astype(np.float32)).write(arguments.out)
    patients = rows["patient"].nunique()
    print(f"{arguments.out}: {len(cases)} scans of {patients} patients, release {bundle.manifest.digest[:12]}")
    print(f"serve it: {INDEX_VARIABLE}={arguments.out} ctfoundry serve --line {arguments.line}")
    return 0
