"""`python -m spineclue_v2.cli predict ...`: the same commands where the scripts are not on the path."""
from __future__ import annotations

import sys

from . import command_names
from ._common import main

if len(sys.argv) < 2 or sys.argv[1] not in command_names():
    sys.exit(f"usage: python -m spineclue_v2.cli COMMAND ...; commands: {', '.join(command_names())}")
sys.exit(main(sys.argv[1], sys.argv[2:]))
