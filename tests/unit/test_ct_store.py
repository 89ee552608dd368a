"""What the store says where it cannot write."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from components.ct.store import StoredVolume, Volume, write_volume
from components.errors import UserError


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files cannot grow beyond ``size`` bytes: to the writer, a disk that fills up."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 1000, 500_000])
def test_a_full_disk_is_one_line_and_leaves_the_old_volume(size: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, (64, 96, 96)).astype(np.int16)
    path = tmp_path / "a.b2nd"
    write_volume(path, Volume(noise[:4], np.eye(4)), {})
    with room_for(size), pytest.raises(UserError, match=r"^disk: full while writing below .*; free some and run again"):
        write_volume(path, Volume(noise, np.eye(4)), {})
    np.testing.assert_array_equal(StoredVolume(path).read().hu, noise[:4])
    assert [p.name for p in tmp_path.iterdir()] == ["a.b2nd"]
