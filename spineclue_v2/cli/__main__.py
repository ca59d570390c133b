"""`python -m spineclue_v2.cli predict ...`: the same commands where the scripts are not on the path."""
from __future__ import annotations

import sys

from . import command_names
from ._common import main
from ._reference import flag_codes, plan_fields, reference

if sys.argv[1:] == ["--reference"]:
    sys.stdout.write(reference())
elif sys.argv[1:] == ["--plan-reference"]:
    sys.stdout.write(plan_fields())
elif sys.argv[1:] == ["--flags-reference"]:
    sys.stdout.write(flag_codes())
elif len(sys.argv) > 1 and sys.argv[1] in command_names():
    sys.exit(main(sys.argv[1], sys.argv[2:]))
else:
    sys.stderr.write(f"usage: python -m spineclue_v2.cli COMMAND ...; commands: {', '.join(command_names())}\n")
    sys.exit(2)
