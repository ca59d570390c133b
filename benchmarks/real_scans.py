"""Real scans through the shipped weights: `python -m benchmarks.real_scans -o DIR [--data ../shared/data]`.

Each scan runs in a process of its own, as a user would run it; seconds and peak memory are that process's. The VerSe scans have
reference masks; the two negatives hold no vertebra.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

SCANS = {
    "verse005": ("ct/verse/sub-verse005_ct.nii.gz", "ct/verse/sub-verse005_seg-vert_msk.nii.gz"),
    "verse008": ("ct/verse/sub-verse008_ct.nii.gz", "ct/verse/sub-verse008_seg-vert_msk.nii.gz"),
    "tptbox": ("ct/tptbox/sub-ct_label-22_ct.nii.gz", "ct/tptbox/sub-ct_seg-vert_label-22_msk.nii.gz"),
    "totalsegmentator": ("ct/totalsegmentator/example_ct.nii.gz", None),
    "rider_chest": ("ct/unlabelled/rider_chest_1p5mm.nii.gz", None),
    "cmb_chest": ("ct/unlabelled/cmb_chest_1p5x2p5mm.nii.gz", None),
    "negative_leg": ("ct/negative/STS_010_CT_image.nii.gz", None),
    "negative_hand": ("ct/negative/STS_019_CT_image.nii.gz", None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", required=True, type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[1].parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", default=list(SCANS), choices=list(SCANS))
    parser.add_argument("--model", nargs="*", default=[], help="further arguments for spineclue_predict, e.g. -d 500 -f 0")
    args = parser.parse_args()
    for name in args.only:
        scan, reference = SCANS[name]
        if not (args.data / scan).exists():
            print(f"{name}: not there")
            continue
        run(name, args.data / scan, args.data / reference if reference else None, args.o / name, args.model)


def run(name: str, scan: Path, reference: Path | None, output: Path, model: list[str]) -> None:
    command = [sys.executable, "-m", "spineclue_v2.cli", "predict", "-i", str(scan), "-o", str(output), "-device", "cpu", *model]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss / 2 ** 20
    if os.waitstatus_to_exitcode(status):
        print(f"{name}: failed, {process.stderr.read().decode()[-300:]}")
        return
    record = json.loads(next(p for p in output.glob("*.json") if p.name.split(".")[0] == scan.name.split(".")[0]).read_text())
    levels = [f"{v['level']}{'' if v['confidence'] > 0.9 else '?'}" for v in record["vertebrae"]]
    print(f"{name}: {len(levels)} vertebrae {' '.join(levels)}; anchored {record['numbering_anchored']}; process {seconds:.1f} s, "
          f"peak {peak:.2f} GB; {({k: round(v, 1) for k, v in record['seconds'].items()})}")
    if reference is not None:
        from spineclue_v2.evaluation.summary import evaluate

        figures = evaluate(reference, output / f"{scan.name.split('.')[0]}.nii.gz")["spineclue"]
        found = figures["detection"]
        print(f"    against the reference: {found['hits']} hits, {found['missed']} missed, {found['false_positives']} false, "
              f"{found['ignored_at_border']} at the border; ID-rate {figures['id_rate']:.3f}, Dice {figures['dice']:.3f}, "
              f"HD95 {figures['hd95_mm']:.2f} mm")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
