"""Tables as Parquet with stable bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.files import replacing


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Parquet without an index. Rows are written in the order given: sort them first."""
    with replacing(path) as temporary:
        arrow = pa.Table.from_pandas(table.reset_index(drop=True), preserve_index=False)
        pq.write_table(arrow.replace_schema_metadata(None), temporary, compression="zstd")


def read_table(path: Path) -> pd.DataFrame:
    """Raises FileNotFoundError, which names the file where Arrow's does not."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    table: pd.DataFrame = pq.read_table(path).to_pandas()
    return table
