"""``ctfoundry``: the platform's command line."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from components import arithmetic
from components.errors import UserError
from components.settings import lines, reproducible
from components.sources.kinds import spelled
from flows.environment import prepare
from flows.lines import add_line, chosen_line
from flows.lock import checkout_lock, line_slot
from flows.processes import Stopped, ending_with_us, leave
from flows.together import add_jobs
from serving.tls import add_options as add_tls_options
from serving.tls import tls_of

if TYPE_CHECKING:
    from components.confined import Result
    from flows.run import Run
    from serving.embedding import ServedBundle
    from serving.limits import Limits

# Modules that are imported when their command is asked for: pandas and torch take seconds, and ``--help`` should not.
MODULES = {
    "line": ("flows.lines", "List the model lines, or write a new one from a line or a published recipe."),
    "cohort": ("flows.cohorts", "Preview and compare selections from the Imaging Data Commons."),
    "set": ("flows.sets", "Labelled scans of your own: every release is evaluated on them."),
    "task": ("flows.tasks", "Published protocols: what they need, their blocks and figures, shown or written."),
    "volume": ("flows.volumes", "Look at one volume: facts, labels, three planes as PNG, export to NIfTI."),
    "classify": ("flows.classify", "What the heads of a release answer for one scan, without a server."),
    "segment": ("flows.segment", "The structures of one scan by the release's decoder, as NIfTI, without a server."),
    "index": ("flows.index", "The vectors of a line's scans as one file, for a service to find the most similar in."),
    "cases": ("flows.cases.command", "The worst and best cases of a line's evaluation, to look at in a browser."),
    "run": ("flows.batch", "Answer for every scan of a folder: a table, segmentations, receipts and a report."),
    "gateway": ("serving.gateway.commands", "At a hospital's door: studies in by DICOM, the service's answers back."),
    "cost": ("flows.costs.command", "What a release took: hours, bytes, money, energy, by the prices of now."),
    "platform": ("flows.platform.up", "Scheduled releases on this machine: Prefect's server, deployments, workers."),
    "export": ("flows.export", "A release as others load it: a Hugging Face folder, a MONAI bundle, ONNX."),
    "recipe": ("flows.recipes", "Show a published recipe, or write it into params.yaml."),
    "start": ("flows.start", "Begin from published weights: adopt them as they are, or train them further."),
    "image": ("flows.image.command", "An OCI image of a line's present release, tested as it will run, with SBOMs."),
    "sign": (
        "flows.sign",
        "Sign the present release, and its Bento, with the key that the environment names.",
    ),
    "releases": ("flows.promotion.releases", "Published versions of a line: list them, show one, compare two."),
    "promote": (
        "flows.promotion.promote",
        "Make a published version the champion, that is served and that later ones must not fall behind.",
    ),
    "rollback": ("flows.promotion.promote", "Make an earlier version the champion again."),
    "approve": ("flows.promotion.approve", "Say yes to a promotion that waits for a person."),
    "reject": ("flows.promotion.approve", "Say no to a promotion that waits for a person."),
    "lineage": (
        "flows.promotion.lineage",
        "From an answer's digest back to commit, parameters and data; from a patient or series to every release.",
    ),
    "withdraw": ("flows.promotion.lineage", "The releases that a patient's withdrawal concerns, and what to run."),
    "verify-bundle": ("flows.verify_bundle", "Whether a release may be loaded here: its files, and who signed them."),
    "import-weights": (
        "flows.champion",
        "Make published weights the champion: load them by name and shape, evaluate them on the line's data.",
    ),
}


def main() -> None:
    """Entry point of the console script. Exits with 1 and one line on stderr for a mistake of the user."""
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    parser = _parser(chosen)
    code, said = 1, ""
    try:
        code = _run(parser)
        sys.stdout.flush()
    except UserError as error:
        said = str(error)
    except Stopped as stopped:
        code, said = 128 + stopped.number, f"ended by {stopped}"
        if chosen in ("release", "run"):
            said += "; the same command goes on where this stopped"
    except KeyboardInterrupt:
        code, said = 128 + signal.SIGINT, "interrupted"
    except BrokenPipeError:  # whoever read has enough, such as `head`
        # The interpreter would flush once more at the end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:  # of a file that was named; any other is a defect of ours
        if not isinstance(error.filename, str):
            raise
        said = f"{error.filename2 or error.filename}: {str(error.strerror).lower()}"  # the second: what is replaced
    print("".join(f"ctfoundry: {text}\n" for text in said.splitlines()), end="", file=sys.stderr, flush=True)
    leave(code)


def _run(parser: argparse.ArgumentParser) -> int:
    try:
        arguments = parser.parse_args()
    except SystemExit as end:
        return int(end.code or 0)
    if not Path("dvc.yaml").is_file():
        raise UserError("dvc.yaml not found; run from the project's root")
    try:
        prepare()
    except OSError as error:
        raise UserError(f"{error.filename}: {str(error.strerror).lower()}; this checkout must be writable") from None
    if "line" in arguments:
        arguments.line = chosen_line(arguments.line)
    return int(arguments.run(arguments))


def _parser(chosen: str = "") -> argparse.ArgumentParser:
    """``chosen``: the command whose options are known; of the others, the names."""
    parser = argparse.ArgumentParser(prog="ctfoundry", description="Make, verify and serve CT foundation models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str, line: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if line:
            add_line(sub)
        return sub

    sub = command("release", _release, "Make a release: run the graph as a Prefect flow, build the Bento.")
    sub.add_argument("--source", help=f"{spelled('<folder>')} (default: what params.yaml says)")
    sub.add_argument(
        "--evaluation",
        help="real evaluation set: lidc_nodules:<folder> or none (default: a folder lidc_nodules beside the source's)",
    )
    sub.add_argument(
        "--privacy", choices=("critical", "reject", "warning"),
        help="what it costs where a header names a person or holds unknown private elements: the run, the series, or a "
        "warning, for data that you know to be harmless (default: what params.yaml says)",
    )  # fmt: skip
    add_jobs(sub)
    sub = command(
        "verify", _verify, "Recompute the release from its commit without any cache and compare every output."
    )
    sub.add_argument("--keep", type=Path, help="leave the clone in this new folder")
    add_jobs(sub)
    sub = command("params", _params, "Check params.yaml: every mistake in one line.", line=False)
    sub.add_argument("--write", action="store_true", help="list the lines' tasks for dvc.yaml, where one came or went")
    sub = command("publish", _publish, "Publish the present release: data, a commit on a branch, a version's tag.")
    sub.add_argument("--bump", choices=("patch", "minor", "major"), default="patch", help="what grows (default: patch)")
    command("docs", _docs, "Build Great Expectations Data Docs of the judged tables.")
    for name, (module, text) in MODULES.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            import_module(module).add_options(sub)
    text = "How fast the recipe trains here, on one device, and what it waits for. Nothing is kept."
    sub = command("profile", _profile, text)
    sub.add_argument("--steps", type=int, default=10, help="timed each way (default: 10)")
    sub.add_argument("--volumes-per-step", type=int, help="on this device (default: a worker's share)")
    sub.add_argument("--loaders", type=int, help="processes that read ahead (default: as params.yaml says)")
    sub.add_argument("--peak-tflops", type=float, help="of the device in the recipe's precision: shows the share")
    sub.add_argument("--trace", type=Path, help="write a timeline of a few steps, for ui.perfetto.dev")
    sub = command("locate", _locate, "Where the bytes of a pseudonym in a table lie on this machine.")
    sub.add_argument("key", help="a series' key, or a file's in the cohort's table of files")
    sub = command("serve", _serve, "Serve the Bento of a line's present release, or of its champion.")
    sub.add_argument("--champion", action="store_true", help="the version that the tags say, pulled where missing")
    sub.add_argument("--offline", action="store_true", help="with --champion: by the tags that this clone knows")
    sub.add_argument("--host", default="127.0.0.1", help="address to bind (default: 127.0.0.1)")
    sub.add_argument("--port", type=int, default=3000, help="port (default: 3000)")
    add_tls_options(sub)
    sub = command("embed", _embed, "Embed a DICOM series (zip) or NIfTI file with the release, without a server.")
    sub.add_argument("file", type=Path)
    return parser


def _release(arguments: argparse.Namespace) -> int:
    from flows.run import Run

    run, what = Run(arguments.line, arguments.jobs), f"release --line {arguments.line}"
    with checkout_lock(what), ending_with_us(), line_slot(arguments.line, what):
        return _release_alone(arguments, run)


def _release_alone(arguments: argparse.Namespace, run: Run) -> int:
    from flows.beginning import begin
    from flows.places import require_server

    begin(arguments.line, arguments.source, arguments.evaluation, arguments.privacy, require_server)
    from flows.artifacts import print_summary
    from flows.release import make_release
    from flows.run import ReleaseFailed

    try:
        make_release(run)
    except ReleaseFailed as error:
        print_summary(run)
        print(f"ctfoundry: {error}", file=sys.stderr)
        return 1
    print_summary(run)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from components.progress import wide_console
    from flows.places import require_pins
    from flows.verify import verify

    require_pins()
    with checkout_lock(f"verify --line {arguments.line}"), ending_with_us():
        compared = verify(arguments.line, arguments.keep, arguments.jobs)
    table = Table("stage", "output", "recorded", "recomputed", "identical")
    for row in compared:
        table.add_row(
            row.stage, row.output, row.recorded[:12], row.recomputed[:12] or "missing", "yes" if row.identical else "NO"
        )
    wide_console().print(table)
    different = [row for row in compared if not row.identical]
    print(f"{len(compared) - len(different)} of {len(compared)} outputs identical")
    return 1 if different else 0


def _profile(arguments: argparse.Namespace) -> int:
    arithmetic.enter(reproducible(arguments.line))
    from flows.profile import run  # torch takes seconds to import: only where it is used

    return run(arguments)


def _params(arguments: argparse.Namespace) -> int:
    from components.registry import check_file
    from flows.parameters import list_tasks
    from flows.start import check_start

    if arguments.write and list_tasks():
        print("params.yaml: tasks: listed as the lines have them")
    check_file()
    for told in filter(None, [check_start(line, fetch=False) for line in lines()]):
        print(told)
    print("params.yaml: every block is valid")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from flows.publish import publish

    what = f"publish --line {arguments.line}"
    with checkout_lock(what), ending_with_us(), line_slot(arguments.line, what):
        made = publish(arguments.line, arguments.bump)
    print(f"{made.tag}: bundle {made.digest[:16]}, branch {made.branch}{'' if made.new else ', published before'}")
    return 0


def _docs(arguments: argparse.Namespace) -> int:
    return subprocess.run([sys.executable, "-m", "components.summary", "--line", arguments.line]).returncode


def _locate(arguments: argparse.Namespace) -> int:
    from components.sources.locate import locate

    found = locate(arguments.line, arguments.key)
    print("\n".join(found.remarks), end="\n" if found.remarks else "", file=sys.stderr)  # paths alone can be piped
    print("\n".join(found.paths))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from serving.run import serve

    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    target = arguments.line
    if arguments.champion:
        from flows.promotion.served import champion_bento

        target = champion_bento(arguments.line, arguments.offline)
    return serve(target, arguments.host, arguments.port, tls_of(arguments))


def _embed(arguments: argparse.Namespace) -> int:
    import json

    from flows.offline import answered

    def work(bundle: ServedBundle, limits: Limits) -> Result:
        from components.confined import Result
        from serving.embedding import embed_file

        return Result(embed_file(arguments.file, bundle, limits).to_json())

    print(json.dumps(answered(arguments.file, arguments.line, work).content, indent=2))
    return 0


if __name__ == "__main__":
    main()
