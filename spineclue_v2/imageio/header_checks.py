"""Text headers of MetaImage and NRRD, checked before ITK sees them.

ITK's parsers write past their buffers where such a header says something absurd (99 dimensions, lines of thousands of characters), and a
crash cannot be caught. So whatever sizes their memory is read here first; all the rest is left to them.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError

MAX_HEADER_BYTES = 1 << 20
MAX_FIELD = 400           # characters of a field; free text (comments, key:=value) may be longer
MAX_TEXT = 200            # of a text that MetaIO keeps in 255 bytes
MAX_FREE_TEXT = 1 << 16
MAX_DIMENSION = 10
MAX_CHANNELS = 1000
NRRD_TYPES = {f"{sign}{kind}" for kind in ("char", "short", "short int", "int", "long long", "long long int") for sign in ("", "signed ",
              "unsigned ")} | {f"{sign}int{bits}{end}" for bits in (8, 16, 32, 64) for sign in ("", "u") for end in ("", "_t")} | {
              "uchar", "ushort", "uint", "longlong", "ulonglong", "float", "double"}
NRRD_ENCODINGS = {"raw", "txt", "text", "ascii", "hex", "gz", "gzip", "bz2", "bzip2"}
NRRD_FIELDS = {"content", "number", "type", "block size", "blocksize", "dimension", "space", "space dimension", "sizes", "spacings",
               "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "centers", "centerings", "labels", "units", "min", "max",
               "old min", "oldmin", "old max", "oldmax", "data file", "datafile", "endian", "encoding", "line skip", "lineskip",
               "byte skip", "byteskip", "kinds", "sample units", "sampleunits", "space units", "space origin", "space directions",
               "measurement frame"}
NRRD_VECTORS = ("space origin", "space directions", "measurement frame")
META_LISTS = ("dimsize", "elementsize", "elementspacing", "offset", "position", "origin", "centerofrotation")
META_MATRICES = ("transformmatrix", "rotation", "orientation")
META_TEXTS = {"ndims", "elementtype", "elementnumberofchannels", "elementdatafile", "headersize", "modality", "objecttype", "objectsubtype",
              "transformtype", "name", "comment", "color", "acquisitiondate", "binarydata", "compresseddata", "compresseddatasize",
              "compressionlevel", "binarydatabyteordermsb", "elementbyteordermsb", "anatomicalorientation", "elementmin", "elementmax",
              "elementtointensityfunctionslope", "elementtointensityfunctionoffset", "id", "parentid", "sequenceid", "distanceunits"}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf|infinity)"
_VECTOR = re.compile(rf"none|\(\s*(?:{_NUMBER})(?:\s*,\s*(?:{_NUMBER})){{0,15}}\s*\)", re.IGNORECASE)


def check_header(path: Path) -> dict[str, str]:
    """Fields (lower case) of a .mha, .mhd, .nrrd or .nhdr header; InputError when ITK had better not see it."""
    with open(path, "rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    return _check_nrrd(path, head) if path.name.lower().endswith((".nrrd", ".nhdr")) else _check_meta(path, head)


def stored_bytes(path: Path, fields: Mapping[str, str]) -> int:
    """Size of the file with the voxels: of .mhd and .nhdr the one that the header names (of a list of them: all in the folder)."""
    if not path.name.lower().endswith((".mhd", ".nhdr")):
        return path.stat().st_size
    named = fields.get("elementdatafile") or fields.get("data file") or fields.get("datafile") or ""
    try:
        if named and (path.parent / named).is_file():
            return (path.parent / named).stat().st_size
    except (OSError, ValueError):
        pass
    return sum(entry.stat().st_size for entry in path.parent.iterdir() if entry.is_file())


def _check_meta(path: Path, head: bytes) -> dict[str, str]:
    wrong = f"{path} is no readable image of its kind"
    fields: dict[str, str] = {}
    for line in head.split(b"\n"):
        key, separator, value = line.decode("latin-1").strip("\r \t").partition("=")
        key, value = key.strip().lower(), value.strip()
        if not separator and not key:
            continue
        if not separator or not re.fullmatch(r"[^\x00-\x1f]{1,80}", key) or "\0" in value:
            raise InputError(f"{wrong}: its header has a line that is no 'Key = value'.")
        known = key in META_TEXTS or key in META_LISTS or key in META_MATRICES
        if len(value) > (MAX_TEXT if key in META_TEXTS else MAX_FIELD if known else MAX_FREE_TEXT):
            raise InputError(f"{wrong}: '{key}' in its header has {len(value)} characters.")
        if known and key in fields:
            raise InputError(f"{wrong}: its header names '{key}' twice.")
        fields[key] = value
        if key == "elementdatafile":
            break
    else:
        raise InputError(f"{wrong}: its header names no ElementDataFile.")
    dimensions = _whole(path, fields.get("ndims", ""), "NDims", MAX_DIMENSION)
    _whole(path, fields.get("elementnumberofchannels", "1"), "ElementNumberOfChannels", MAX_CHANNELS)
    for key in (*META_LISTS, *META_MATRICES):
        wanted = dimensions if key in META_LISTS else dimensions ** 2
        found = fields.get(key, " ".join(["0"] * wanted)).split()
        if key == "elementspacing" and "elementspacing" not in fields:
            continue
        if len(found) != wanted or not all(re.fullmatch(_NUMBER, number, re.IGNORECASE) for number in found):
            raise InputError(f"{wrong}: '{key}' in its header is not {wanted} numbers.")
    if "dimsize" not in fields:
        raise InputError(f"{wrong}: its header names no DimSize.")
    return fields


def _check_nrrd(path: Path, head: bytes) -> dict[str, str]:
    wrong = f"{path} is no readable image of its kind"
    lines = head.split(b"\n")
    if not re.fullmatch(rb"NRRD000[1-5]\r?", lines[0]):
        raise InputError(f"{wrong}: it does not begin with NRRD0001 to NRRD0005.")
    fields: dict[str, str] = {}
    for raw in lines[1:]:
        line = raw.decode("latin-1").rstrip("\r")
        if not line:
            break
        key, separator, value = line.partition(":")
        free = line.startswith("#") or value.startswith("=")
        if "\0" in line or len(line) > (MAX_FREE_TEXT if free else MAX_FIELD):
            raise InputError(f"{wrong}: its header has a line of {len(line)} characters, or with zero bytes.")
        if free:
            continue
        key = key.lower()
        if not separator or key not in NRRD_FIELDS or key in fields:
            raise InputError(f"{wrong}: its header has the line {line[:40]!r}, which is no field, or there twice.")
        fields[key] = value.strip()
        if key in ("data file", "datafile") and fields[key].upper().startswith("LIST"):
            break
    dimensions = _whole(path, fields.get("dimension", ""), "dimension", MAX_DIMENSION)
    sizes = fields.get("sizes", "").split()
    if len(sizes) != dimensions or not all(re.fullmatch(r"\d{1,18}", size) for size in sizes):
        raise InputError(f"{wrong}: 'sizes' in its header is not {dimensions} whole numbers.")
    if fields.get("type", "").lower() not in NRRD_TYPES:
        raise InputError(f"{wrong}: '{fields.get('type', '')[:40]}' is no type of voxels.")
    if fields.get("encoding", "").lower() not in NRRD_ENCODINGS:
        raise InputError(f"{wrong}: '{fields.get('encoding', '')[:40]}' is no known encoding.")
    for key in NRRD_VECTORS:
        if key in fields and _VECTOR.sub("", fields[key]).strip():
            raise InputError(f"{wrong}: '{key}' in its header is no list of vectors.")
    return fields


def _whole(path: Path, text: str, what: str, largest: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or not 1 <= int(text) <= largest:
        raise InputError(f"{path} is no readable image of its kind: '{what}' in its header is {text[:40]!r}; expected 1 to {largest}.")
    return int(text)
