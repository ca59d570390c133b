"""Nothing is unpickled, nothing absurd is allocated, and who was scanned stays out of logs and results."""
from __future__ import annotations

import ast
import gzip
import json
import logging
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from blocks import spine
from small_model import write_results
from test_house_rules import ROOT, SOURCES

from spineclue_v2.cli import _common
from spineclue_v2.errors import InputError
from spineclue_v2.training.checkpoint import Checkpoint

LOADERS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}


def test_whatever_is_loaded_is_loaded_without_pickle():
    """Also in tests and benchmarks: `allow_pickle` is said aloud wherever an array file is opened by the library."""
    offences, seen = [], 0
    for source in [*SOURCES, *(p.relative_to(ROOT) for p in (ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in LOADERS:
                continue
            name, wanted = LOADERS[ast.unparse(node.func)]
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            seen += 1
            # numpy's own default is the safe one; nobody may turn it round.
            if given.get(name, wanted if name == "allow_pickle" else None) is not wanted:
                offences.append(f"{source}:{node.lineno}")
    assert offences == [] and seen > 5


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "boom")


@pytest.mark.parametrize("where", ["network_weights", "extra", "meta", "optimizer_state"])
def test_a_malicious_checkpoint_is_refused_by_every_command_that_reads_one(tmp_path, where, capsys, monkeypatch):
    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path))
    folder = write_results(tmp_path / "results")
    file = next(folder.glob("Segment*/fold_0/checkpoint_final.pth"))
    content = torch.load(file, weights_only=True)
    torch.save(content | {where: Bomb(tmp_path / "sprung")}, file)
    for command, arguments in (("predict", ["-i", str(file), "-o", str(tmp_path / "out"), "-m", str(folder), "-device", "cpu"]),
                               ("export_model", ["-d", folder.name, "-o", str(tmp_path / "model.zip")])):
        assert _common.main(command, arguments) == 2, command
        assert "damaged or no checkpoint of ours" in capsys.readouterr().err
    with pytest.raises(InputError):
        Checkpoint.load(file)
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "model.zip").exists()


READ = """
import resource, sys
from spineclue_v2.cli import _common
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import read_volume
for path in sys.argv[1:]:
    try:
        read_volume(path)
        print("read", path)
    except InputError as error:
        print("refused", str(error)[:200].replace("\\n", " "))
# Not ru_maxrss, which a process inherits from the one that started it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_headers_that_claim_terabytes_are_refused_before_anything_is_allocated(tmp_path):
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 32000, 32000, 32000, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    (tmp_path / "a.nii").write_bytes(bytes(header) + b"\0" * 1000)
    with gzip.open(tmp_path / "b.nii.gz", "wb") as file:
        file.write(bytes(header) + b"\0" * 1000)
    (tmp_path / "c.nrrd").write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 90000 90000 90000\nencoding: raw\nendian: little\n\n12")
    (tmp_path / "d.mha").write_bytes(b"ObjectType = Image\nNDims = 3\nDimSize = 90000 90000 90000\nElementType = MET_SHORT\n"
                                     b"ElementDataFile = LOCAL\n12")
    files = [str(tmp_path / name) for name in ("a.nii", "b.nii.gz", "c.nrrd", "d.mha")]
    said = subprocess.run([sys.executable, "-c", READ, *files], capture_output=True, encoding="utf-8", timeout=120)
    lines = said.stdout.splitlines()
    assert said.returncode == 0, said.stderr
    assert [line.split()[0] for line in lines[:4]] == ["refused"] * 4
    assert int(lines[4]) < 1_000_000  # kilobytes at the peak


PRIVATE = {"0010|0010": "Mustermann^Erika", "0010|0020": "PID-4711-X", "0010|0030": "19640812", "0010|1040": "Heidestrasse 17",
           "0008|0090": "Doktor^Allwissend", "0008|0080": "Klinikum Nirgendwo"}


def write_series(folder: Path) -> None:
    """A CT series whose headers say who was scanned."""
    import SimpleITK as sitk

    folder.mkdir()
    array = spine(("L1", "L2"), (3.0, 3.0, 3.0))[0].array
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, cut in enumerate(array):
        image = sitk.GetImageFromArray(cut[None])
        image.SetSpacing((3.0, 3.0, 3.0))
        image = image[:, :, 0]
        tags = PRIVATE | {"0008|0060": "CT", "0020|000e": "1.2.3.4", "0020|000d": "1.2.3", "0020|0032": f"0\\0\\{3 * number}",
                          "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(number), "0008|0018": f"1.2.3.4.{number + 1}", "0018|0050": "3"}
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{number:03d}.dcm"))
        writer.Execute(image)


def test_who_was_scanned_stays_out_of_results_and_logs(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path / "home"))
    model = write_results(tmp_path / "results")
    write_series(tmp_path / "series")
    with caplog.at_level(logging.DEBUG):
        assert _common.main("predict", ["-i", str(tmp_path / "series"), "-o", str(tmp_path / "out"), "-m", str(model), "-device", "cpu",
                                        "--verbose", "--save_probabilities"]) == 0
    said = capsys.readouterr()
    texts = {"terminal": said.out + said.err, "log": caplog.text}
    for file in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        content = file.read_bytes()
        texts[file.name] = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("latin-1")
    assert "series.json" in texts and json.loads(texts["series.json"])["status"]
    parts = [part for value in PRIVATE.values() for part in value.split("^")]
    assert [(name, part) for name, text in texts.items() for part in parts if part.lower() in text.lower()] == []


def test_a_bad_series_does_not_say_who_was_scanned_either(tmp_path, capsys, caplog):
    write_series(tmp_path / "series")
    (tmp_path / "series" / "005.dcm").unlink()  # a missing slice
    model = write_results(tmp_path / "results")
    assert _common.main("predict", ["-i", str(tmp_path / "series"), "-o", str(tmp_path / "out"), "-m", str(model), "-device", "cpu"]) == 2
    said = capsys.readouterr().err + caplog.text
    assert any(line.startswith("error: ") for line in said.splitlines())
    assert not any(part in said for value in PRIVATE.values() for part in value.split("^"))

