"""The files that say who the champion is, as one commit on the remote's branch, made without a checkout."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components.bundle.manifest import Manifest
from components.errors import UserError
from components.files import write_json, write_text
from components.gate.champion import CHAMPIONS
from flows.champion import champion_of
from flows.promotion.tags import REMOTE, Version
from flows.repository import git
from serving.build import bento_tag

IGNORED = (CHAMPIONS / ".gitignore").as_posix()


def champion_files(version: Version, bundle: Path, manifest: Manifest, scratch: Path) -> dict[str, Path]:
    """Path in the repository to a file with what it is to hold: figures, the profile that drift is judged by, the
    served Bento and image, and the encoder's DVC file.

    The encoder is in the DVC remote afterwards, before any commit names it.

    Args:
        bundle: the verified release folder.
        scratch: an empty folder for the files.

    Raises:
        UserError: the DVC remote does not take the encoder.
    """
    line = version.line
    tag = bento_tag(manifest)  # the image has the Bento's tag, too
    served = {"version": version.version, "commit": version.commit, "bento": tag, "image": tag}
    file = scratch / f"{line}.json"
    write_json(file, {"champion": {**champion_of(bundle, manifest), "served": served}})
    tracked = _tracked_encoder(line, bundle, scratch / "dvc")
    return {f"{CHAMPIONS.as_posix()}/{path.name}": path for path in (file, tracked)}


def _tracked_encoder(line: str, bundle: Path, scratch: Path) -> Path:
    """The DVC file of the champion's encoder. Its objects go into our cache and to our remote."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from components.bundle.stage import ENCODER_FILES

    encoder = scratch / f"{line}.encoder"
    encoder.mkdir(parents=True)
    for name in ENCODER_FILES:
        shutil.copyfile(bundle / name, encoder / name)
    with Repo() as ours:
        config: dict[str, Any] = {"cache": {**ours.config["cache"], "dir": ours.cache.local_cache_dir}}
        config["remote"] = dict(ours.config["remote"])
        if remote := ours.config["core"].get("remote"):
            config["core"] = {"remote": remote}
    write_text(scratch / ".dvc" / "config", "[core]\n    no_scm = true\n")  # `dvc init` talks
    try:
        with Repo(str(scratch), config=config) as repo:
            (stage,) = repo.add(str(encoder))
            if remote:
                repo.push([stage.path])
    except (DvcException, OSError) as error:
        raise UserError(
            f"DVC remote {remote}: does not take the encoder: {' '.join(str(error).split())[:200]}"
        ) from None
    return Path(stage.path)


def committed(base: str, files: dict[str, Path], ignored: Iterable[str], message: str, index: Path) -> str:
    """A commit on ``base`` with ``files`` in it; no working tree is touched. Returns its hash.

    Args:
        base: commit, or a ref.
        files: path in the repository to the file with the new content.
        ignored: lines that the champions' ``.gitignore`` must have.
        message: of the commit.
        index: where Git may write a temporary index; does not exist.
    """
    known = git("show", f"{base}:{IGNORED}").splitlines() if git("ls-tree", "--name-only", base, IGNORED) else []
    ignore = index.with_name("gitignore")
    ignore.write_text("".join(f"{text}\n" for text in dict.fromkeys([*known, *ignored])))
    place = {"GIT_INDEX_FILE": str(index.absolute())}
    index.unlink(missing_ok=True)
    git("read-tree", base, **place)
    for path, file in {**files, IGNORED: ignore}.items():
        blob = git("hash-object", "-w", "--no-filters", str(file.absolute()))
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", **place)
    tree = git("write-tree", **place)
    return git("commit-tree", tree, "-p", git("rev-parse", base), "-m", message)


def main_ref(branch: str) -> str:
    """The remote's branch as it was last fetched."""
    return f"refs/remotes/{REMOTE}/{branch}"
