"""What git says of the checkout."""

from __future__ import annotations

import subprocess


def git(*arguments: str, cwd: str | None = None) -> str:
    """Run git and return its output. Raises CalledProcessError."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=cwd)
    return done.stdout.strip()


def changed_files() -> list[str]:
    """Tracked files that differ from the commit."""
    return sorted(set(git("diff", "--name-only", "HEAD").splitlines()))


def commit_labels() -> dict[str, str]:
    """Commit and whether the checkout differs from it; empty outside a repository."""
    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_changed": ",".join(changed_files())[:200] or "no"}
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {}
