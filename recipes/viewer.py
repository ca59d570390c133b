"""The viewer of the pages, from the published one: `python -m recipes.viewer niivue.umd.js`.

niivue.umd.js is the file dist/niivue.umd.js of the npm package @niivue/niivue. It carries three WebAssembly programs as base64 (the
codecs Blosc, LZ4 and Zstandard of Zarr volumes), more than half of its size. Pages hold NIfTI alone, so the programs are emptied; a Zarr
volume could not be unpacked then. Nothing else is changed. NIIVUE_LICENSES.txt states the sha256 of both files.
"""
from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "spineclue_v2" / "visualization" / "page"
PROGRAM = re.compile(rb'"AGFzbQ[A-Za-z0-9+/=]+"')   # base64 of the first bytes of WebAssembly
PROGRAMS = 3


def without_programs(published: bytes) -> bytes:
    """The viewer with its WebAssembly emptied; ValueError where there are not as many programs as were looked at."""
    emptied, count = PROGRAM.subn(b'""', published)
    if count != PROGRAMS:
        raise ValueError(f"the viewer holds {count} WebAssembly programs, expected {PROGRAMS}; look at what the others are for")
    return emptied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("published", type=Path)
    published = parser.parse_args().published.read_bytes()
    viewer = without_programs(published)
    (PAGE / "niivue.umd.js").write_bytes(viewer)
    print("published", hashlib.sha256(published).hexdigest())
    print("contained", hashlib.sha256(viewer).hexdigest(), len(viewer), "bytes of", len(published))


if __name__ == "__main__":
    main()
