"""`spineclue_doctor`: is this installation fit to work, and what to do where it is not."""
from __future__ import annotations

import argparse

DESCRIPTION = ("Check this installation: versions, threads, memory, write access, weights, GPU, system libraries, and the whole program on "
               "a small synthetic scan. Says what to do. Exit code 1 when something is broken.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", default=None, help="also check that this output folder can be written")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON, for bug reports and monitoring")
    parser.add_argument("--no_self_test", action="store_true", help="leave out the prediction of the synthetic scan")


def run(args: argparse.Namespace) -> int:
    import json

    from ..doctor.examine import examine, is_broken

    checks = examine(args.o, not args.no_self_test)
    broken = is_broken(checks)
    if args.json:
        print(json.dumps({"broken": broken, "checks": [check.to_dict() for check in checks]}, indent=2))
        return int(broken)
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:<8}{check.name:<{width}}  {check.found}")
        if check.what_to_do:
            print(f"{'':<8}{'':<{width}}  -> {check.what_to_do}")
    print("Something is broken: see the lines with ->." if broken else "This installation can work.")
    return int(broken)
