"""Work in several processes, wherever temporary files go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAP = """
from components.processes import map_all

if __name__ == "__main__":
    print(map_all(abs, [-1, -2, -3], "try", workers=2))
"""


def test_processes_start_where_temporary_files_lie_deep(tmp_path: Path) -> None:
    """SLURM gives jobs such folders; a socket's path may have 107 characters (unix(7))."""
    deep = tmp_path / ("slurm_jobdir_" + "x" * 80)
    deep.mkdir()
    script = tmp_path / "script.py"
    script.write_text(MAP)
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(deep)}
    done = subprocess.run([sys.executable, str(script)], env=variables, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1, 2, 3]\n", done.stderr
    assert list(deep.iterdir()) == []
