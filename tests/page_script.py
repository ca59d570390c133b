"""The commands of a documentation page as one script, as a reader would type them: `python tests/page_script.py PAGE [HEADING]` prints it.

Blocks in bash and python run in the order of the page; other blocks (text, layouts) are there to be read.
"""
from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from spineclue_v2.cli import command_names

ROOT = Path(__file__).parents[1]


def blocks(page: Path, heading: str | None = None) -> list[tuple[str, str]]:
    """(language, text) of the blocks that run, of the whole page or of the part below one `## heading`."""
    text = page.read_text(encoding="utf-8")
    if heading is not None:
        parts = re.split(r"^## ", text, flags=re.MULTILINE)
        [text] = [part for part in parts if part.startswith(f"{heading}\n")]
    return re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def script(found: list[tuple[str, str]], replaced: Mapping[str, str] | None = None) -> str:
    """Blocks as a bash script that ends with the first failure.

    `replaced`: smaller numbers in place of the page's. Each must occur, so that a changed page cannot quietly run at full size.
    """
    lines = ["set -euo pipefail"]
    for language, text in found:
        lines.append(text if language == "bash" else f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n")
    whole = "\n".join(lines)
    for old, new in (replaced or {}).items():
        if old not in whole:
            raise ValueError(f"the page no longer holds {old!r}")
        whole = whole.replace(old, new)
    return whole


def put_commands(folder: Path) -> Path:
    """`folder` with this interpreter as `python`, its pip, and every command of this checkout, whether its script is installed or not."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = {"python": "", "pip": "-m pip"} | {f"spineclue_{name}": f"-m spineclue_v2.cli {name}" for name in command_names()}
    for name, module in modules.items():
        path = folder / name
        path.write_text(f'#!{shutil.which("sh")}\nexec "{sys.executable}" {module} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    return folder


if __name__ == "__main__":
    sys.stdout.write(script(blocks(ROOT / sys.argv[1], *sys.argv[2:3])))
