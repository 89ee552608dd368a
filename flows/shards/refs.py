"""What a run and the runs of its shards tell each other, by refs of the git remote: no branches, and gone when it ends.

``refs/ctfoundry/shards/<run>/from`` is the commit that the shards are made at. ``.../<shard>`` holds the ``dvc.lock``
and the records of costs that a shard's run came to; it is there only once all of its data are in DVC's remote.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from components.errors import UserError
from flows.publish import REMOTE, commit_carried, somebody
from flows.repository import git

ROOT = "refs/ctfoundry/shards"
FROM = "from"
LOCK = "dvc.lock"


def hand_out(run: str, line: str) -> str:
    """Push this checkout's parameters and lock file as the commit of a run's shards; returns the commit."""
    commit = commit_carried(f"Shards of line {line}, for run {run}")
    _push(commit, f"{ROOT}/{run}/{FROM}")
    return commit


def hand_in(run: str, shard: str, files: Mapping[str, Path]) -> None:
    """Push what a shard came to. ``files``: path in the commit to file."""
    with tempfile.TemporaryDirectory(prefix="ctfoundry-index-") as folder:
        own = {**somebody(), "GIT_INDEX_FILE": str(Path(folder) / "index")}
        for name, path in files.items():
            blob = git("hash-object", "-w", "--no-filters", "--", str(path))
            git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", **own)
        commit = git("commit-tree", "-m", f"Shard {shard}", git("write-tree", **own), **own)
    _push(commit, f"{ROOT}/{run}/{shard}")


def _push(commit: str, ref: str) -> None:
    git("push", "--quiet", "--force", REMOTE, f"{commit}:{ref}")


@contextmanager
def handed_in(run: str) -> Iterator[Path]:
    """A folder with what the shards of a run came to: ``<shard>/dvc.lock`` and the records, each where it was."""
    here = f"{ROOT}/{run}"
    git("fetch", "--quiet", "--no-tags", "--force", REMOTE, f"{here}/*:{here}/*")
    with tempfile.TemporaryDirectory(prefix="ctfoundry-index-") as temporary:
        for ref in git("for-each-ref", "--format=%(refname)", here).splitlines():
            shard = ref.removeprefix(f"{here}/")
            if shard != FROM:
                own = {"GIT_INDEX_FILE": str(Path(temporary) / f"index-{shard}")}
                git("read-tree", ref, **own)
                git("checkout-index", "--all", f"--prefix={Path(temporary) / shard}/", **own)
        yield Path(temporary)


def clear(run: str) -> None:
    """Remove a run's refs from the remote, where there are any."""
    if refs := _listed(f"{ROOT}/{run}/*"):
        git("push", "--quiet", REMOTE, *(f":{ref}" for ref in refs))


def clear_dead(is_dead: Callable[[str], bool]) -> int:
    """Remove the refs of runs that are no more; returns of how many runs. ``is_dead``: by the run's id."""
    runs = {ref.removeprefix(f"{ROOT}/").partition("/")[0] for ref in _listed(f"{ROOT}/*")}
    dead = [run for run in sorted(runs) if is_dead(run)]
    for run in dead:
        with suppress(UserError):  # somebody else has just removed them
            clear(run)
    return len(dead)


def _listed(pattern: str) -> list[str]:
    return [line.split("\t")[1] for line in git("ls-remote", REMOTE, pattern).splitlines()]
