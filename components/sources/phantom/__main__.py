"""Scan phantom patients into a folder, one sub-folder per series: ``python -m components.sources.phantom --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from components.errors import UserError
from components.sources.config import PhantomConfig
from components.sources.phantom.dealing import faulty, plan_scans
from components.sources.phantom.scanner import scan


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m components.sources.phantom",
        description="Scan procedural patients: DICOM CT series with masks, annotations and, if wanted, faults.",
    )
    parser.add_argument("--anatomy", choices=("trunk", "head"), default="trunk", help="what is scanned (default trunk)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the series, one sub-folder each")
    parser.add_argument("--patients", type=int, default=4, help="how many clean scans (default 4)")
    parser.add_argument(
        "--fault-share", type=float, default=0.0, help="share of all series that carry a fault, 0 to 0.5"
    )
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other patients (default 0)")
    arguments = parser.parse_args()
    try:
        counted, seeded = 1 <= arguments.patients <= 9999, 0 <= arguments.seed < 2**63
        if not counted or not seeded or not 0 <= arguments.fault_share <= 0.5:
            raise UserError("--patients must be 1 to 9999, --fault-share 0 to 0.5, --seed 0 to 2^63 - 1")
        _scan_all(arguments)
    except UserError as error:
        print(f"phantom: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"phantom: --out {arguments.out}: cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(1)


def _scan_all(arguments: argparse.Namespace) -> None:
    config = PhantomConfig(
        anatomy=arguments.anatomy,
        pretrain_patients=arguments.patients,
        evaluation_patients=4,  # the fewest there are; not scanned here
        retest_patients=0,
        fault_share=arguments.fault_share,
        seed=arguments.seed,
    )
    plans = [plan for plan in plan_scans(config) if plan.role == "pretrain"]
    for plan in plans[: arguments.patients + faulty(arguments.patients, arguments.fault_share)]:
        folder = arguments.out / plan.name
        table = scan(plan, folder)
        table.to_csv(folder / "annotations.csv", index=False)
        print(f"{plan.name}  {plan.fault or 'clean'}  {int(table['present'].sum())} structures")


if __name__ == "__main__":
    main()
