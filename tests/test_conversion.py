"""Converters on miniature trees built from the public datasets' real file names, with made-up volumes."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from blocks import spine, write_dataset

from spineclue_v2.anatomy import LABEL_OF_NAME, LUMBAR, THORACIC
from spineclue_v2.cli._common import main
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.dataset.splits import make_splits
from spineclue_v2.dataset_conversion import ctspine1k, totalsegmentator, verse
from spineclue_v2.dataset_conversion.registry import CONVERTERS, convert_dataset
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume, write_volume

LAYOUTS = Path(__file__).parents[1].parent / "shared" / "data" / "layouts"
COARSE = (4.0, 3.0, 3.0)
PAIR = ("L4", "L5")

# Real names (see the datasets' own lists), one of each kind.
VERSE = {
    "verse19/dataset-verse19training/rawdata/sub-verse004/sub-verse004_ct.nii.gz": "training",
    "verse19/dataset-verse19training/rawdata/sub-verse401/sub-verse401_split-verse253_ct.nii.gz": "training",
    "verse19/dataset-verse19training/rawdata/sub-verse401/sub-verse401_split-verse260_ct.nii.gz": "training",
    "verse19/dataset-verse19validation/rawdata/sub-verse019/sub-verse019_ct.nii.gz": "public",
    "verse19/dataset-verse19test/rawdata/sub-verse012/sub-verse012_ct.nii.gz": "hidden",
    "verse20/01_training/rawdata/sub-gl003/sub-gl003_dir-ax_ct.nii.gz": "training",
    "verse20/02_validation/rawdata/sub-gl017/sub-gl017_ct.nii.gz": "public",
    "verse20/03_test/rawdata/sub-verse588/sub-verse588_dir-iso_ct.nii.gz": "hidden",
}


@pytest.fixture(scope="module")
def small() -> tuple[Volume, Volume]:
    image, labels, _ = spine(PAIR, COARSE)
    return image, labels


def put(root: Path, files: dict[str, Volume]) -> Path:
    for name, volume in files.items():
        write_volume(volume, root / name)
    return root


def verse_tree(root: Path, release: str, image: Volume, labels: Volume) -> Path:
    for name in (n for n in VERSE if n.startswith(release)):
        path = Path(name)
        base = path.name[: -len("_ct.nii.gz")]
        derived = path.parent.parent.parent / "derivatives" / path.parent.name
        put(root, {name: image, str(derived / f"{base}_seg-vert_msk.nii.gz"): labels})
        ctd = [{"direction": ["P", "I", "R"]}, {"label": 24, "X": 1.0, "Y": 2.0, "Z": 3.0}]
        (root / derived / f"{base}_seg-subreg_ctd.json").write_text(json.dumps(ctd))
    return root / release


@pytest.mark.parametrize("release", ["verse19", "verse20"])
def test_verse_subject_release(tmp_path: Path, small: tuple[Volume, Volume], release: str) -> None:
    source = verse_tree(tmp_path / "download", release, *small)
    folder = convert_dataset(release, 519, source, output_root=tmp_path / "raw")
    raw = RawDataset(folder)
    expected = {Path(n).name[:-10]: part for n, part in VERSE.items() if n.startswith(release)}
    assert dict.fromkeys(raw.cases, "training") | {c: part for part, cs in raw.test_sets.items() for c in cs} == {
        name.removesuffix("_"): part for name, part in expected.items()
    }
    for part in ("public", "hidden"):
        for case in raw.test_sets[part]:
            assert (folder / "imagesTs" / f"{case}_0000.nii.gz").is_file() and (folder / "labelsTs" / f"{case}.nii.gz").is_file()
    first = raw.cases[0]
    assert json.loads((folder / "centroidsTr" / f"{first}_ctd.json").read_text())[0] == {"direction": ["P", "I", "R"]}
    source_image = next(p for p in source.rglob("*_ct.nii.gz") if p.name.startswith(first))
    assert os.stat(raw.image(first)).st_ino == os.stat(source_image).st_ino, "images are linked, not copied"
    assert raw.labels["T13"] == 28 and raw.verse_value[24] == 24


def test_the_hidden_set_is_evaluated_alone(tmp_path: Path, small: tuple[Volume, Volume], capsys: pytest.CaptureFixture) -> None:
    source = verse_tree(tmp_path / "download", "verse19", *small)
    assert main("convert_dataset", ["verse19", "-i", str(source), "-d", "519", "-np", "0"]) == 0
    labels = Path(os.environ["SPINECLUE_HOME"]) / "raw" / "Dataset519_VerSe19" / "labelsTs"
    capsys.readouterr()
    assert main("evaluate", ["-d", "519", "--set", "hidden", "-pred", str(labels), "-o", str(tmp_path / "s.json"), "-np", "0"]) == 0
    assert "1 scans, 2 reference vertebrae" in capsys.readouterr().out
    cases = json.loads((tmp_path / "s.json").read_text())["metric_per_case"]
    assert [Path(case["reference_file"]).name for case in cases] == ["sub-verse012.nii.gz"]
    assert main("evaluate", ["-d", "519", "--set", "secret", "-pred", str(labels), "-np", "0"]) == 2
    assert "has no set 'secret'; known: hidden, public" in capsys.readouterr().err


def test_parts_of_a_patient_stay_together(tmp_path: Path, small: tuple[Volume, Volume]) -> None:
    source = verse_tree(tmp_path / "download", "verse19", *small)
    raw = RawDataset(convert_dataset("verse19", 519, source, output_root=tmp_path / "raw"))
    parts = [c for c in raw.cases if "sub-verse401" in c]
    assert len(parts) == 2 and {raw.patients[c] for c in parts} == {"sub-verse401"}
    for split in make_splits(raw.cases, raw.patients):
        assert len({c in split["val"] for c in parts}) == 1


def test_verse_grades_follow_the_scan_or_the_subject(tmp_path: Path, small: tuple[Volume, Volume]) -> None:
    source = verse_tree(tmp_path / "download", "verse19", *small)
    table = tmp_path / "grades.csv"
    table.write_text("subject,verse_label,genant_grade,split\nsub-verse004,24,2,train\nsub-verse253,23,1,train\nsub-verse253,24,,train\n")
    assert main("convert_dataset", ["verse19", "-i", str(source), "-d", "519", "-np", "0", "-grades", str(table)]) == 0
    folder = Path(os.environ["SPINECLUE_HOME"]) / "raw" / "Dataset519_VerSe19"
    read = {p.stem: json.loads(p.read_text()) for p in (folder / "gradesTr").iterdir()}
    assert read == {"sub-verse004": {"L5": 2}, "sub-verse401_split-verse253": {"L4": 1}}
    table.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="lacks the columns"):
        verse.read_grades(table)


def test_verse_miccai_release(tmp_path: Path, small: tuple[Volume, Volume]) -> None:
    image, labels = small
    root = put(tmp_path / "down", {
        "verse20_train/verse500_CT-iso.nii.gz": image, "verse20_train/verse500_CT-iso_seg.nii.gz": labels,
        "verse20_train/verse061.nii.gz": image, "verse20_train/verse061_seg.nii.gz": labels,
        "verse20_train/verse700_CT_ax.nii.gz": image, "verse20_train/verse700_seg.nii.gz": labels,
        "verse20_validation/verse600.nii.gz": image, "verse20_validation/verse600_seg.nii.gz": labels,
        "verse20_test/verse900_seg.nii.gz": labels,
    })  # fmt: skip
    raw = RawDataset(convert_dataset("verse20", 520, root, output_root=tmp_path / "raw"))
    assert raw.cases == ["verse061", "verse500_CT-iso", "verse700"] and raw.test_sets == {"public": ["verse600"]}


@pytest.mark.skipif(not LAYOUTS.is_dir(), reason="the datasets' own file lists are not here")
@pytest.mark.parametrize(("release", "counts"), [("verse19", (73, 37, 40)), ("verse20", (61, 79, 70))])
def test_every_real_verse_name_is_understood(tmp_path: Path, release: str, counts: tuple[int, int, int]) -> None:
    names = (LAYOUTS / f"{release}_ct_paths.txt").read_text().split()
    for name in names:
        path = tmp_path / name
        mask = path.parents[2] / "derivatives" / path.parent.name / path.name.replace("_ct.nii.gz", "_seg-vert_msk.nii.gz")
        for file in (path, mask):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    cases, skipped = verse.find_cases(tmp_path / release, {})
    assert not skipped and len(cases) == len(names) == len({c.name for c in cases})
    assert tuple(sum(c.part == p for c in cases) for p in ("training", "public", "hidden")) == counts
    assert all(c.patient.startswith("sub-") and c.name.startswith(c.patient) for c in cases)


@pytest.mark.skipif(not LAYOUTS.is_dir(), reason="the dataset's own split file is not here")
def test_every_real_ctspine1k_name_is_in_the_split(tmp_path: Path) -> None:
    text = (LAYOUTS / "ctspine1k_data_split.txt").read_text()
    (tmp_path / "data_split.txt").write_text(text)
    parts = ctspine1k.read_split(tmp_path)
    assert {p: list(parts.values()).count(p) for p in ("training", "public", "hidden")} == {
        "training": 610, "public": 197, "hidden": 198,
    }  # fmt: skip
    assert set(ctspine1k.KNOWN_ERRORS) <= set(parts) and not any(name.endswith(".nii.gz") for name in parts)
    sources = {"1.3.6": "colon", "CTC": "colon", "HN": "HNSCC-3DCT-RT_neck", "liver": "liver", "volume": "covid-19"}
    for name in parts:
        source = next(folder for start, folder in sources.items() if name.startswith(start))
        for kind, ending in (("volumes", ".nii.gz"), ("labels", "_seg.nii.gz")):
            path = tmp_path / "raw_data" / kind / source / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    cases, skipped = ctspine1k.find_cases(tmp_path)
    assert set(skipped) == set(ctspine1k.KNOWN_ERRORS) and {c.name for c in cases} == set(parts) - set(skipped)
    assert all(c.part == parts[c.name] and c.label is not None and c.label.name == f"{c.name}_seg.nii.gz" for c in cases)


def test_ctspine1k(tmp_path: Path, small: tuple[Volume, Volume], caplog: pytest.LogCaptureFixture) -> None:
    image, labels = small
    names = {"colon": ["1.3.6.1.4.1.9328.50.4.0001", "1.3.6.1.4.1.9328.50.4.0103", "1.3.6.1.4.1.9328.50.4.0002"],
             "HNSCC-3DCT-RT_neck": ["HN_P001"], "liver": ["liver_12"], "covid-19": ["volume-covid19-A-0003_ct"]}  # fmt: skip
    root = tmp_path / "down"
    for source, stems in names.items():
        put(root, {f"raw_data/volumes/{source}/{s}.nii.gz": image for s in stems}
            | {f"raw_data/labels/{source}/{s}_seg.nii.gz": labels for s in stems})  # fmt: skip
    (root / "raw_data" / "labels" / "liver" / "liver_12_seg.nii.gz").unlink()
    wrong = Volume(labels.array, dataclasses.replace(labels.geometry, spacing=(2.0, 3.0, 3.0)))     # upstream issue 13: spacing errors
    put(root, {"raw_data/volumes/liver/liver_13.nii.gz": image, "raw_data/labels/liver/liver_13_seg.nii.gz": wrong})
    (root / "data_split.txt").write_text(
        "trainset:\n1.3.6.1.4.1.9328.50.4.0001.nii.gz\n1.3.6.1.4.1.9328.50.4.0103.nii.gz\nliver_12.nii.gz\n"
        "liver_13.nii.gz\n\n"
        "test_public:\nHN_P001.nii.gz\n\ntest_private:\nvolume-covid19-A-0003_ct.nii.gz\n"
    )
    raw = RawDataset(convert_dataset("ctspine1k", 530, root, output_root=tmp_path / "raw"))
    assert raw.cases == ["1.3.6.1.4.1.9328.50.4.0001"]
    assert "liver_13: Case 'liver_13': the label map liver_13_seg.nii.gz lies on another grid" in caplog.text
    assert raw.test_sets == {"hidden": ["volume-covid19-A-0003_ct"], "public": ["HN_P001"]}
    _, skipped = ctspine1k.find_cases(root)
    assert skipped["1.3.6.1.4.1.9328.50.4.0103"].endswith("(upstream issue 13)")
    assert skipped["liver_12"] == "no labels" and skipped["1.3.6.1.4.1.9328.50.4.0002"] == "not in data_split.txt"
    assert "1.3.6.1.4.1.9328.50.4.0103" in [c.name for c in ctspine1k.find_cases(root, True)[0]]


def test_totalsegmentator(tmp_path: Path, small: tuple[Volume, Volume]) -> None:
    image, labels = small
    root = tmp_path / "down"

    def part(value: int) -> Volume:
        return Volume((labels.array == value).astype(np.uint8), labels.geometry)

    for name in ("s0011", "s0235"):
        put(root, {f"{name}/ct.nii.gz": image, f"{name}/segmentations/vertebrae_L4.nii.gz": part(23),
                   f"{name}/segmentations/vertebrae_L5.nii.gz": part(24),
                   f"{name}/segmentations/liver.nii.gz": part(1)})  # fmt: skip
    put(root, {"s0300/ct.nii.gz": image, "s0300/segmentations/liver.nii.gz": part(1),
               "s0400/ct.nii.gz": image, "s0400/segmentations/vertebrae_L4.nii.gz": part(1)})  # fmt: skip
    put(root, {"s0350/ct.nii.gz": image, "s0350/segmentations/vertebrae_L4.nii.gz": part(23)})
    (root / "meta.csv").write_text("image_id;age;split\ns0011;60;train\ns0235;50;test\ns0300;40;train\ns0400;44;val\n")
    # The release's sacrum has a hole where S1 lies: the two files together are the sacrum.
    sacrum = np.zeros(labels.array.shape, np.uint8)
    sacrum[2:4, 4:12, 4:12] = 1
    body = np.zeros_like(sacrum)
    body[4:6, 4:8, 4:12] = 1
    put(root, {"s0011/segmentations/sacrum.nii.gz": Volume(sacrum, labels.geometry),
               "s0011/segmentations/vertebrae_S1.nii.gz": Volume(body, labels.geometry)})  # fmt: skip
    raw = RawDataset(convert_dataset("totalsegmentator", 540, root, output_root=tmp_path / "raw"))
    assert raw.cases == ["s0011"] and raw.test_sets == {"public": ["s0235"]}
    written = read_labels(raw.label("s0011")).array
    assert np.array_equal(written, np.where(labels.array, labels.array, 26 * (sacrum | body)))
    _, skipped = totalsegmentator.find_cases(root)
    assert skipped["s0350"].endswith("(upstream issue 394)") and skipped["s0300"] == "no vertebra file"
    assert "s0350" in [c.name for c in totalsegmentator.find_cases(root, True)[0]]


def test_csi2014_levels_come_from_height(tmp_path: Path) -> None:
    names = THORACIC + LUMBAR
    image, labels, _ = spine(names, COARSE)
    table = np.zeros(30, np.uint16)
    table[[LABEL_OF_NAME[n] for n in names]] = [100 * (17 - i) for i in range(17)]
    counts = Volume(np.clip(image.array, -1024, None) + np.int16(1024), image.geometry)
    numbered = Volume(table[labels.array], labels.geometry)
    few = Volume(np.where(numbered.array > 500, numbered.array, 0), labels.geometry)
    root = put(tmp_path / "down", {"case1.mha": counts, "case1_label.mha": numbered, "case2.mha": counts, "case2_label.mha": few,
                                   "case3.mha": counts})  # fmt: skip
    raw = RawDataset(convert_dataset("csi2014", 550, root, output_root=tmp_path / "raw"))
    assert raw.cases == ["case1"]
    assert np.array_equal(read_labels(raw.label("case1")).array, labels.array)
    assert np.array_equal(read_volume(raw.image("case1")).array, np.clip(image.array, -1024, None))


def test_mrspineseg_and_spider_number_from_below(tmp_path: Path, small: tuple[Volume, Volume]) -> None:
    image, labels = small
    strange = np.where(labels.array == 24, 2, np.where(labels.array == 23, 3, 0))
    strange[:2] = 11
    mr = put(tmp_path / "mr", {"train/MR/Case7.nii.gz": image, "train/MR/Case8.nii.gz": image,
                               "train/Mask/mask_case7.nii.gz": Volume(strange.astype(np.uint8), labels.geometry)})  # fmt: skip
    raw = RawDataset(convert_dataset("mrspineseg", 560, mr, output_root=tmp_path / "raw"))
    assert raw.cases == ["Case7"] and raw.channel_name == "T2"
    expected = labels.array.copy()
    expected[:2] = raw.labels["L5/S"]
    assert np.array_equal(read_labels(raw.label("Case7")).array, expected)
    numbered = np.where(labels.array == 24, 1, np.where(labels.array == 23, 102, 0))
    numbered[:2] = 201
    mask = Volume(numbered.astype(np.uint8), labels.geometry)
    files = {f"images/{n}.mha": image for n in ("1_t1", "1_t2", "2_t2", "3_t2_SPACE")}
    spider = put(tmp_path / "spider", files | {f"masks/{n}.mha": mask for n in ("1_t1", "1_t2", "2_t2")})
    (spider / "overview.csv").write_text("new_file_name,subset\n1_t1,training\n1_t2,training\n2_t2,validation\n")
    raw = RawDataset(convert_dataset("spider", 561, spider, output_root=tmp_path / "raw"))
    assert raw.cases == ["spider_1_t1", "spider_1_t2"] and set(raw.patients.values()) == {"spider_1"}
    assert raw.test_sets == {"public": ["spider_2_t2"]}
    assert np.array_equal(read_labels(raw.label("spider_1_t2")).array, expected)


def test_any_nnunet_dataset_and_running_again(tmp_path: Path, small: tuple[Volume, Volume]) -> None:
    image, labels = small
    own = Volume((labels.array > 0).astype(np.uint8) + (labels.array == 24), labels.geometry)
    turned = Volume(own.array, own.geometry).reoriented("RAI")
    source = write_dataset(tmp_path / "Dataset900_Own", {"a": (image, own), "b": (image, turned)},
                           {"background": 0, "vertebrae_L4": 1, "vertebrae_L5": 2}, patients={"a": "x", "b": "x"})  # fmt: skip
    folder = convert_dataset("nnunet", 570, source, "Mine", tmp_path / "raw")
    raw = RawDataset(folder)
    assert folder.name == "Dataset570_Mine" and raw.patients == {"a": "x", "b": "x"}
    for case in raw.cases:                                  # labels stored along other axes come back along the image's
        assert np.array_equal(read_labels(raw.label(case)).array, labels.array)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    raw.image("b").unlink()
    convert_dataset("nnunet", 570, source, "Mine", tmp_path / "raw")
    again = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    assert set(again) == set(times) and again[raw.label("a")] == times[raw.label("a")]


def test_a_case_that_cannot_be_used_is_skipped_with_its_reason(
    tmp_path: Path, small: tuple[Volume, Volume], caplog: pytest.LogCaptureFixture
) -> None:
    image, labels = small
    bad = Volume(np.where(labels.array == 24, 99, labels.array).astype(np.uint8), labels.geometry)
    root = put(tmp_path / "down", {"verse20_train/verse500.nii.gz": image, "verse20_train/verse500_seg.nii.gz": labels,
                                   "verse20_train/verse501.nii.gz": image, "verse20_train/verse501_seg.nii.gz": bad})  # fmt: skip
    raw = RawDataset(convert_dataset("verse20", 520, root, output_root=tmp_path / "raw"))
    assert raw.cases == ["verse500"] and "verse501: its labels hold the values [99]" in caplog.text
    assert not (raw.folder / "imagesTr" / "verse501_0000.nii.gz").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (("verse21", 1, "."), "no converter 'verse21'; known: phantom"), (("verse19", 1000, "."), "out of range"),
    (("verse19", 5), "needs -i"), (("phantom", 5, "."), "takes no -i"), (("verse19", 5, "/nowhere"), "is no folder"),
    (("verse19", 5, ".", "a/b"), "may hold letters"), *(((name, 5, "EMPTY"), "holds no") for name in sorted(CONVERTERS)
                                                       if name not in ("phantom", "phantom_mr", "nnunet")),
    (("nnunet", 5, "EMPTY"), "dataset.json"),
])  # fmt: skip
def test_bad_requests(tmp_path: Path, arguments: tuple, message: str) -> None:
    arguments = tuple(tmp_path if a == "EMPTY" else a for a in arguments)
    with pytest.raises(InputError, match=message):
        convert_dataset(*arguments, output_root=tmp_path / "raw")


def test_an_id_in_use_and_unknown_options(tmp_path: Path) -> None:
    (tmp_path / "raw" / "Dataset005_Other").mkdir(parents=True)
    with pytest.raises(InputError, match="taken by Dataset005_Other"):
        convert_dataset("verse19", 5, tmp_path, output_root=tmp_path / "raw")
    with pytest.raises(InputError, match="no option cases"):
        convert_dataset("verse19", 6, tmp_path, output_root=tmp_path / "raw", cases=3)
