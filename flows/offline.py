"""One scan and a release, without a server: what ``ctfoundry embed``, ``classify`` and ``segment`` share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import UserError

if TYPE_CHECKING:
    from components.confined import Result
    from serving.embedding import ServedBundle
    from serving.limits import Limits


def answered(file: Path, line: str, work: Callable[[ServedBundle, Limits], Result]) -> Result:
    """What ``work`` gives for a file, which is read in a process of its own, as the service does.

    Args:
        file: one CT series as zip, or a NIfTI volume.
        line: whose present release.
        work: done in that process, with the release and the limits of archive and volume.

    Raises:
        UserError: no such file; or what the process says.
    """
    import numpy  # noqa: F401  # its BLAS takes its buffers here, and not within the child's bounds

    from components.confined import Bounds, isolated

    # Imported in the child, so that this process has no threads when it forks.
    def load() -> ServedBundle:
        from serving.embedding import open_release

        return open_release(Path("releases") / line)

    def done(bundle: ServedBundle) -> Result:
        from serving.limits import Limits

        tempfile.tempdir = scratch
        return work(bundle, Limits.from_environment())

    if not file.is_file():
        raise UserError(f"file {file.name!r}: no such file")
    with tempfile.TemporaryDirectory(prefix="ctfoundry-") as scratch:  # a child that is killed cleans nothing up
        return isolated(load, done, Bounds.from_environment(), file.name)
