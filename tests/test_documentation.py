"""What the documentation says must be what the program does."""
from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from spineclue_v2.cli import command_names
from spineclue_v2.cli._common import build_parser
from spineclue_v2.cli._reference import plan_fields, reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "documentation").rglob("*.md"))]


def command_lines(page: Path) -> list[str]:
    """Lines of the page's shell blocks that call one of our commands."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [match for block in blocks for match in re.findall(r"spineclue_[^;&|\n]*", block.replace("\\\n", " "))]


def test_the_command_reference_is_up_to_date():
    written = (ROOT / "documentation" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m spineclue_v2.cli --reference > documentation/reference/commands.md"


def test_the_reference_of_plan_fields_is_up_to_date():
    written = (ROOT / "documentation" / "reference" / "plan_fields.md").read_text(encoding="utf-8")
    again = "python -m spineclue_v2.cli --plan-reference > documentation/reference/plan_fields.md"
    assert written == plan_fields(), f"run: {again}"
    assert again in written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_that_is_shown_can_be_parsed(page):
    for line in command_lines(page):
        name, *arguments = shlex.split(line.replace("$stage", "identify"), comments=True)
        assert name.removeprefix("spineclue_") in command_names(), f"{page.name}: {line}"
        try:
            build_parser(name.removeprefix("spineclue_")).parse_args(arguments)
        except SystemExit as error:
            pytest.fail(f"{page.name}: {line} ends with {error}")


def test_the_readme_shows_commands():
    assert len(command_lines(ROOT / "README.md")) >= 5


@pytest.mark.parametrize("there, flag", [((), ""), (("latest",), "--c"), (("final",), "--c"), (("latest", "final"), "--c")])
def test_the_slurm_recipe_continues_whatever_can_be_continued(tmp_path, there, flag):
    lines = re.findall(r"^(?:fold|resume)=.*$", (ROOT / "documentation" / "how_to" / "folds.md").read_text(encoding="utf-8"), re.MULTILINE)
    script = "\n".join(lines).replace("RESULTS", str(tmp_path)) + "\necho $resume"
    folder = tmp_path / "Dataset501_Name" / "SegmentTrainer__SpineCLUEPlans__segment" / "fold_3"
    folder.mkdir(parents=True)
    for name in there:
        (folder / f"checkpoint_{name}.pth").touch()
    environment = {"SLURM_ARRAY_TASK_ID": "3", "PATH": os.defpath}
    said = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, encoding="utf-8")
    assert said.stdout.strip() == flag, said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    places = (ROOT, ROOT / "spineclue_v2", ROOT / "tests" / "data" / "extension")
    for name in re.findall(r"`([a-z_]+/[a-z_/]*[a-z_]+\.py)`", text):
        assert any((folder / name).exists() for folder in places), f"{page.name} names {name}"
