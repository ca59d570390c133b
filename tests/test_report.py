"""The picture: planes that follow the spine, names at their vertebrae, doubts stated."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spineclue_v2 import anatomy
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.results import SpineResult
from spineclue_v2.visualization.report import curved_views, spine_figure, write_report

LEVELS = ("T11", "T12", "L1", "L2", "L3")


def scoliosis(bend_mm: float = 25.0) -> tuple[SpineResult, Volume]:
    """Five blocks 30 mm apart that swing `bend_mm` to the left and back, in noise-free soft tissue, 1.25 mm voxels."""
    geometry = ImageGrid((150, 90, 100), (1.25, 1.25, 1.25), (-60.0, -50.0, 10.0), np.eye(3))
    array = np.full(geometry.shape, 40, dtype=np.int16)
    array[:, :, :3] = -1000
    vertebrae = []
    for i, level in enumerate(LEVELS):
        middle = np.array([125 - 24 * i, 45, 45 + round(bend_mm / 1.25 * np.sin(np.pi * i / 4))])
        start = middle - (8, 10, 12)
        array[tuple(slice(a, a + n) for a, n in zip(start, (17, 21, 25), strict=True))] = 400
        vertebrae.append(Vertebra((0.0, 0.0, 0.0), (20.0, 25.0, 30.0), 1.0, mask=np.ones((17, 21, 25), dtype=bool),
                                  mask_start=tuple(start), level=level, confidence=0.95,
                                  body_centre=tuple(geometry.index_to_world(middle))))
    return SpineResult(tuple(vertebrae), True), Volume(array, geometry)


def texts(figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def test_planes_pass_through_the_bodies_of_a_bent_spine():
    result, scan = scoliosis()
    sagittal, coronal = curved_views(result.vertebrae, scan.geometry, scan.geometry)
    for vertebra in result.vertebrae:
        z, y, x = scan.geometry.world_to_index(vertebra.body_centre) * np.array(scan.geometry.spacing)
        row = int(np.argmin(np.abs(sagittal.rows_mm - z)))
        assert abs(sagittal.position[row, 0, 2] - x) < 3.0
        assert abs(coronal.position[row, 0, 1] - y) < 3.0
    assert np.ptp(sagittal.position[:, 0, 2]) > 20  # it bends


def test_a_vertebra_cut_by_the_border_does_not_bend_the_planes():
    result, scan = scoliosis(bend_mm=0.0)
    aside = tuple(np.add(result.vertebrae[0].body_centre, (0, 30, 0)))
    astray = replace(result.vertebrae[0], touches_border=True, body_centre=aside)
    coronal = curved_views((astray, *result.vertebrae[1:]), scan.geometry, scan.geometry)[1]
    assert np.ptp(coronal.position[:, 0, 1]) < 1.0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_with_few_vertebrae_the_planes_are_straight(count):
    result, scan = scoliosis()
    for view, axis in zip(curved_views(result.vertebrae[:count], scan.geometry, scan.geometry), (2, 1), strict=True):
        assert np.ptp(view.position[:, 0, axis]) == 0.0


def test_pixels_are_square_in_millimetres_and_rows_agree_between_the_views():
    result, scan = scoliosis()
    figure = spine_figure(result, scan.geometry, scan, "case")
    width, height = figure.get_size_inches()
    scales = []
    for panel in figure.axes:
        box = panel.get_position()
        scales += [box.width * width / np.ptp(panel.get_xlim()), box.height * height / np.ptp(panel.get_ylim())]
    assert np.allclose(scales, scales[0], rtol=1e-6)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_every_vertebra_is_named_and_coloured(tmp_path):
    from matplotlib.image import imread

    result, scan = scoliosis()
    write_report(result, scan.geometry, scan, tmp_path / "a.png", "case 7")
    pixels = imread(tmp_path / "a.png")[..., :3]
    figure = spine_figure(result, scan.geometry, scan, "case 7")
    assert "case 7" in texts(figure) and "5 vertebrae, T11 to L3" in texts(figure) and "95 %" in texts(figure)
    for vertebra in result.vertebrae:
        assert vertebra.level in [text.get_text() for text in figure.texts]
        line = 0.7 * np.array(anatomy.colour(vertebra.level)) / 255 + 0.3
        assert (np.abs(pixels - line).max(axis=-1) < 0.04).sum() > 100
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_masks_are_drawn_where_they_are_in_the_world():
    """Masks on a coarser, shifted network space grid cover the same bright blocks of the scan."""
    result, scan = scoliosis()
    model = scan.geometry.cropped((10, 8, 6), (130, 80, 90))
    moved = [replace(v, mask_start=tuple(np.subtract(v.mask_start, (10, 8, 6)))) for v in result.vertebrae]
    here = spine_figure(result, scan.geometry, scan, "a")
    there = spine_figure(SpineResult(tuple(moved), True), model, scan, "a")
    for first, second in zip(here.axes, there.axes, strict=True):
        for a, b in zip(first.collections, second.collections, strict=True):
            for path, other in zip(a.get_paths(), b.get_paths(), strict=True):
                np.testing.assert_allclose(path.vertices, other.vertices, atol=1e-3)


def test_doubts_are_stated():
    result, scan = scoliosis()
    doubtful = (*result.vertebrae[:2], replace(result.vertebrae[2], confidence=0.41),
                replace(result.vertebrae[3], touches_border=True), replace(result.vertebrae[4], level=None, confidence=None))
    shown = texts(spine_figure(SpineResult(doubtful, False, notes=("Slices are 8.0 mm apart.",)), scan.geometry, scan, "a"))
    assert "NUMBERING NOT ANCHORED" in shown and "L1 ?" in shown and "41 %" in shown and "95 % cut" in shown
    assert "unnamed" in shown and "confidence under 70 %" in shown and "Slices are 8.0 mm apart." in shown
    sure = texts(spine_figure(result, scan.geometry, scan, "a"))
    assert "NOT ANCHORED" not in sure and "?" not in sure and "cut" not in sure


def test_no_vertebra_shows_the_scan_and_says_so(tmp_path):
    _, scan = scoliosis()
    write_report(SpineResult((), True), scan.geometry, scan, tmp_path / "leg.png", "leg")
    assert (tmp_path / "leg.png").stat().st_size > 5000
    assert "No vertebra found" in texts(spine_figure(SpineResult((), True), scan.geometry, scan, "leg"))


def test_any_orientation_gives_the_same_picture(tmp_path):
    result, scan = scoliosis()
    turned = Volume(scan.array, scan.geometry).reoriented("PIR")
    for name, volume in (("a", scan), ("b", turned)):
        write_report(result, scan.geometry, volume, tmp_path / f"{name}.png", "case")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


VERSE = Path(__file__).parents[1].parent / "shared" / "data" / "ct" / "verse"


@pytest.mark.skipif(not VERSE.is_dir(), reason="no VerSe scans beside the repository")
def test_a_real_scan_with_its_reference_mask(tmp_path):
    from matplotlib.image import imread

    from spineclue_v2.imageio.volume import read_labels, read_volume
    from spineclue_v2.visualization.overlay import vertebrae_of

    scan, labels = read_volume(VERSE / "sub-verse008_ct.nii.gz"), read_labels(VERSE / "sub-verse008_seg-vert_msk.nii.gz")
    vertebrae = vertebrae_of(labels)
    assert [v.level for v in vertebrae] == ["T12", "L1", "L2", "L3", "L4", "L5"]
    write_report(SpineResult(vertebrae, True), labels.geometry, scan, tmp_path / "a.png", "sub-verse008")
    assert min(imread(tmp_path / "a.png").shape[:2]) > 600


def test_command_draws_every_labelled_scan(tmp_path, capsys):
    from spineclue_v2.cli._common import main
    from spineclue_v2.imageio.volume import write_volume

    result, scan = scoliosis()
    labels = np.zeros(scan.array.shape, dtype=np.uint8)
    for vertebra in result.vertebrae:
        box = tuple(slice(a, a + n) for a, n in zip(vertebra.mask_start, vertebra.mask.shape, strict=True))
        labels[box] = anatomy.LABEL_OF_NAME[vertebra.level]
    for case in ("a", "b"):
        write_volume(scan, tmp_path / "images" / f"{case}_0000.nii.gz")
        write_volume(Volume(labels, scan.geometry), tmp_path / "labels" / f"{case}.nii.gz")
    arguments = ["-i", str(tmp_path / "images"), "-l", str(tmp_path / "labels"), "-o", str(tmp_path / "out"), "-np", "0"]
    assert main("plot_overlay_pngs", arguments) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    write_volume(Volume(labels[:100], scan.geometry.cropped((0, 0, 0), labels[:100].shape)), tmp_path / "labels" / "b.nii.gz")
    assert main("plot_overlay_pngs", arguments) == 1
    assert "failed: b: b: prediction and reference lie on different grids" in capsys.readouterr().out
    assert main("plot_overlay_pngs", ["-i", str(tmp_path / "images"), "-o", str(tmp_path / "out")]) == 2
