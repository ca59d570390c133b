"""One training step of each stage of the paper's plan at full size, batch 1 (identify 2): seconds, peak memory, memory model.

    python -m benchmarks.paper_steps [STAGE ...]

Random input, CPU, float32, one process per stage; identify sees two views of each mask. Peak memory is that of the whole process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

STAGES = ("localize", "segment", "identify")


def measure(stage: str) -> None:
    import dataclasses

    import torch
    from example_fingerprint import fingerprint
    from paper_step import one_step

    from spineclue_v2.planning import memory
    from spineclue_v2.planning.paper_planner import SpineCLUEPaperPlanner

    torch.set_num_threads(2)
    plans = SpineCLUEPaperPlanner("raw", fingerprint(voxel=0.7), 80, "cuda").plan()
    plan = plans.stage(stage)
    size = plan.network.slice_size if stage == "localize" else plan.network.crop_size
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    started = time.perf_counter()
    batch = 2 if stage == "identify" else 1
    loss, moved = one_step(stage, plans, batch, size)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    step = memory.stage_bytes(stage, dataclasses.replace(plan, run=dataclasses.replace(plan.run, batch_size=batch))) or 0.0
    sys.stdout.write(f"{stage}: loss {loss:.3f}, {moved} tensors moved, {seconds:.1f} s, peak {peak:.1f} GB ({idle:.1f} before the "
                     f"step), memory model {step / 1e9:.1f} GB\n")


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--here":
        measure(sys.argv[2])
        return
    for stage in sys.argv[1:] or STAGES:
        subprocess.run([sys.executable, "-m", "benchmarks.paper_steps", "--here", stage], check=True)


if __name__ == "__main__":
    main()
