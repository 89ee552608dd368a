"""What a withdrawal asks for: another champion, a source without the patient, releases made anew, data erased."""

from __future__ import annotations

from collections.abc import Sequence

from flows.promotion.champions import champion
from flows.promotion.contents import contents_of
from flows.promotion.tags import REMOTE, Version, assignments, branch
from flows.promotion.uses import Use

Step = tuple[str, list[str]]
OUT_OF = {
    "phantom": "the phantom scanner's patients are nobody's: change `{line}.cohort.phantom` so that it is not drawn",
    "dicom": "remove the files from the folder that the line is made from, and the rows from its tables of labels",
    "nifti": "remove the files from the folder that the line is made from, and the rows from its tables of labels",
    "dicomweb": "have the study removed from the PACS, and the rows from tables of labels",
    "idc": "take an `idc_version` without it, or put its collection into `{line}.cohort.idc.excluded_collections`",
}


def steps(found: Sequence[Use], published: Sequence[Version]) -> list[Step]:
    """What to run, in order: a sentence, and commands. ``found`` is not empty."""
    of_line = {line: [use for use in found if use.version.line == line] for line in _lines(found)}
    listed = [step for line, uses in of_line.items() for step in _replaced(line, uses, published)]
    return [*listed, *(step for line, uses in of_line.items() for step in _made_anew(line, uses)), _erased(found)]


def _lines(found: Sequence[Use]) -> list[str]:
    return list(dict.fromkeys(use.version.line for use in found))


def _replaced(line: str, uses: Sequence[Use], published: Sequence[Version]) -> list[Step]:
    """Out of service first, where the champion's weights are concerned."""
    now = champion(line)
    concerned = {use.version.name for use in uses if use.trained}
    if now is None or now.version is None or now.version.name not in concerned:
        return []
    named = {use.version.name for use in uses}
    others = [version for version in published if version.line == line and version.name not in named]
    if not others:
        return [(f"Line {line}: no release is without it: stop the service until a new one is promoted (below).", [])]
    command = f"ctfoundry rollback {line} {others[-1].version} --reason 'withdrawal'"
    return [(f"Line {line}: go back to the newest release without it, and start the service again.",
             [command, f"ctfoundry serve --line {line} --champion"])]  # fmt: skip


def _made_anew(line: str, uses: Sequence[Use]) -> list[Step]:
    newest = uses[-1].version
    source = contents_of(newest).parameters(line).get("cohort", {}).get("source", "phantom")
    keys = sorted({key for use in uses for key in use.series if key})
    finding = [f"ctfoundry locate --line {line} {key}" for key in keys] if source in ("dicom", "nifti") else []
    again = f"ctfoundry release --line {line}" + (f" --source {source}:<folder>" if finding else "")
    if not any(use.series for use in uses):
        return [(f"Line {line}: begin with other weights: `{line}.pretrain.start`, then make it anew.", [again])]
    return [
        (f"Line {line}: {OUT_OF.get(source, OUT_OF['dicom']).format(line=line)}.", finding),
        (f"Line {line}: make the release anew, publish it, see that it is without, and promote it.",
         [again, f"ctfoundry lineage {line} --series {keys[0] if keys else '<series>'}",
          f"ctfoundry promote {line} <new version> --reason 'withdrawal'"]),
    ]  # fmt: skip


def _erased(found: Sequence[Use]) -> Step:
    """Tags keep data alive. Other clones and backups are people's to find."""
    commits = {use.version.commit for use in found}
    assigned = [assignment.tag for line in _lines(found) for assignment in assignments(line)]
    tags = [use.version.name for use in found] + [tag.name for tag in assigned if tag.commit in commits]
    branches = [f"refs/heads/release/{use.version.line}/{use.version.version}" for use in found]
    refs = " ".join([*(f"refs/tags/{tag}" for tag in tags), *branches])
    return (
        f"Where it must be erased, too: the releases go, with their tags; {REMOTE}/{branch()} must need none of them.",
        [f"git push {REMOTE} --delete {refs}", f"git tag --delete {' '.join(tags)}",
         "dvc gc --all-branches --all-tags --cloud  # while no release is being made"],
    )  # fmt: skip
