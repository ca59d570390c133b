"""Refuses files above 16 MB: Git keeps them for ever. Usage: large_files.py FILE ..."""
import sys
from pathlib import Path

LIMIT = 16 * 1024 ** 2  # bytes; the largest weights file has 5.4 MB

large = [(name, Path(name).stat().st_size) for name in sys.argv[1:] if Path(name).is_file()]
large = [(name, size) for name, size in large if size > LIMIT]
for name, size in large:
    print(f"{name} has {size / 1024 ** 2:.1f} MB; expected at most {LIMIT // 1024 ** 2} MB.")
sys.exit(bool(large))
