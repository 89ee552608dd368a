"""What git says of the checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from components.errors import UserError

TRUSTED = ("-c", "safe.directory=*")


def git(*arguments: str, **variables: str) -> str:
    """Run git in this checkout and return its output.

    Whoever runs its code trusts the checkout, whose ever files they are (a bind mount of a container): so may git.

    Args:
        arguments: of git.
        variables: of its environment, beside ours.

    Raises:
        UserError: git's last line, or that there is no git.
    """
    try:
        done = subprocess.run(
            ["git", *TRUSTED, *arguments],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise UserError("git: not found; install it") from None
    if done.returncode != 0:
        told = [row.strip() for row in done.stderr.splitlines() if row.strip() and not row.startswith("To ")]
        said = told or [f"exit {done.returncode}"]
        cure = f"; run `git config --global --add safe.directory {Path.cwd()}`" if "dubious" in said[0] else ""
        raise UserError(f"git {arguments[0]}: {said[0].removeprefix('fatal: ')}{cure}")
    return done.stdout.strip()


def is_repository() -> bool:
    """Whether git knows this folder. Raises UserError where it says anything else than yes or no."""
    try:
        return git("rev-parse", "--is-inside-work-tree") == "true"
    except UserError as error:
        if "not a git repository" in str(error):
            return False
        raise


def clone(target: Path) -> None:
    """The present commit into a new folder. Raises UserError as :func:`git`."""
    served = f"git {TRUSTED[0]} '{TRUSTED[1]}' upload-pack"  # the other end is a git of its own, with the same doubts
    git("clone", "--quiet", "--no-hardlinks", "--upload-pack", served, str(Path.cwd()), str(target))


def changed_files() -> list[str]:
    """Tracked files that differ from the commit."""
    return sorted(set(git("diff", "--name-only", "HEAD").splitlines()))


def commit_labels() -> dict[str, str]:
    """Commit and whether the checkout differs from it; empty outside a repository. Raises UserError as :func:`git`."""
    if not is_repository():
        return {}
    return {"git_commit": git("rev-parse", "HEAD"), "git_changed": ",".join(changed_files())[:200] or "no"}
