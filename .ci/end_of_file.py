"""Fixes text files that do not end with exactly one newline. Usage: end_of_file.py FILE ...

Exits with 1 when it changed something, so that the change is looked at before it is committed.
"""
import sys
from pathlib import Path

changed = []
for path in map(Path, sys.argv[1:]):
    before = path.read_bytes()
    after = before.rstrip(b"\r\n")
    after += b"\n" if after else b""
    if after != before and not before.endswith(b"\r\n"):
        path.write_bytes(after)
        changed.append(path)
for path in changed:
    print(f"fixed {path}")
sys.exit(bool(changed))
