"""How localize looks at a scan: tiles, fields of any width, the row followed to its ends, and no empty answer without a close look."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic import ThresholdDetector, hu_volume, localize_run

from spineclue_v2.plans.data import Data
from spineclue_v2.plans.plans import StagePlan
from spineclue_v2.stages.localize import looks
from spineclue_v2.stages.localize.looks import Detectors, Field, look, tiles
from spineclue_v2.stages.localize.plan import LocalizeNetwork
from spineclue_v2.stages.localize.predictor import LARGEST_GAP_MM, locate

PLAN = StagePlan(Data(2.0), LocalizeNetwork("yolo11", "n", (256, 160)), localize_run())
CPU = torch.device("cpu")
STEP = 13                                       # voxels of 2 mm between blocks


class NarrowDetector(ThresholdDetector):
    """Sees nothing in pictures wider than 256 mm (200 mm, padded), as a detector that was trained on narrower ones."""

    def boxes(self, slices, min_score, nms_iou):
        found = super().boxes(slices, min_score, nms_iou)
        return found if slices.shape[-1] <= 128 else [torch.zeros(0, 5) for _ in found]


def blocks(shape, count, x=0.0, y=0.0, x_step=0.0, first=4):
    """Bright blocks (9, 18, 20 voxels) above each other in a volume (z, y, x) of soft tissue, and their middles in voxels."""
    array = np.full(shape, 40, np.int16)
    centres = []
    for number in range(count):
        z, middle_y, middle_x = first + STEP * number, int(y), int(x + x_step * number)
        array[z:z + 9, middle_y - 9:middle_y + 9, middle_x - 10:middle_x + 10] = 400
        centres.append((z + 4, middle_y - 0.5, middle_x - 0.5))
    return array, np.array(centres)[::-1]


@pytest.mark.parametrize("length, size, overlap", [(100, 256, 32), (257, 256, 32), (500, 256, 32), (1000, 100, 56), (220, 100, 56)])
def test_tiles_cover_the_field_and_each_place_has_one_owner(length, size, overlap):
    found = tiles(7, 7 + length, size, overlap)
    assert min(t.low for t in found) == 7 and max(t.stop for t in found) == 7 + length
    assert all(t.stop - t.low <= size for t in found)
    for place in np.arange(7, 7 + length, 0.5):
        assert sum(t.first <= place < t.last for t in found) == 1
    for before, after in zip(found[:-1], found[1:], strict=True):
        assert before.stop - after.low >= min(overlap, size // 2) - 1
        assert after.low <= before.last <= before.stop                # what a tile owns it shows, with room on both sides


@pytest.mark.parametrize("middle", [30, 110, 190])
def test_a_wide_field_shows_the_spine_wherever_it_lies(middle):
    array, centres = blocks((90, 160, 220), 6, x=middle, y=80)
    found = locate(hu_volume(array, PLAN), [NarrowDetector()], PLAN, CPU)
    assert len(found) == 6
    np.testing.assert_allclose([v.box_centre[::-1] for v in found], centres * 2.0, atol=2.0)


def test_boxes_are_counted_once_where_tiles_overlap():
    array, _ = blocks((90, 160, 220), 6, x=110, y=80)
    detectors = Detectors([ThresholdDetector()], PLAN, CPU)
    whole, _ = look(array, Field.whole(array.shape), 10.0, 400, detectors, 0.25)
    parts, _ = look(array, Field.whole(array.shape), 10.0, 100, detectors, 0.25)
    assert len(whole) == len(parts) > 0
    assert sorted(map(tuple, whole.points.round(3))) == sorted(map(tuple, parts.points.round(3)))


def test_no_empty_answer_without_slices_4_mm_apart_wherever_there_is_bone(monkeypatch):
    array = np.full((60, 150, 180), 40, np.int16)
    array[:, 20:140, 30:150] = 300
    seen = {"sagittal": set(), "coronal": set()}

    class Blind(ThresholdDetector):
        def boxes(self, slices, min_score, nms_iou):
            return [torch.zeros(0, 5) for _ in slices]

    original = looks.take_slice

    def noted(volume, plane, index):
        seen[plane].add(index)
        return original(volume, plane, index)

    monkeypatch.setattr(looks, "take_slice", noted)
    assert locate(hu_volume(array, PLAN), [Blind()], PLAN, CPU) == []
    for plane, length in (("sagittal", 180), ("coronal", 150)):
        places = np.array([-1, *sorted(seen[plane]), length])
        assert np.diff(places).max() * 2.0 <= LARGEST_GAP_MM + 2.0


def test_slices_without_bone_cost_nothing():
    detector = ThresholdDetector()
    assert locate(hu_volume(np.full((60, 150, 180), 40, np.int16), PLAN), [detector], PLAN, CPU) == []
    assert detector.calls == 0


def test_a_row_is_followed_where_it_leaves_the_first_close_look():
    array, centres = blocks((260, 120, 200), 19, x=40, y=60, x_step=6.5)      # 12 mm sideways per step, 230 mm in all

    class Short(ThresholdDetector):
        """At the first look it sees the lowest blocks alone: as many slices as a close look has show the rest."""
        first = True

        def boxes(self, slices, min_score, nms_iou):
            found = super().boxes(slices, min_score, nms_iou)
            return [f[f[:, 1] > 160] for f in found] if min_score >= 0.25 else found

    found = locate(hu_volume(array, PLAN), [Short()], PLAN, CPU)
    assert len(found) >= 12
    np.testing.assert_allclose([v.box_centre[::-1] for v in found], centres[-len(found):] * 2.0, atol=3.0)


def test_weak_boxes_count_only_where_the_row_has_room():
    array, centres = blocks((90, 80, 80), 6, x=40, y=40)
    array[centres[2][0].astype(int) - 4:centres[2][0].astype(int) + 5] = np.where(
        array[centres[2][0].astype(int) - 4:centres[2][0].astype(int) + 5] == 400, 330, 40)

    class Scored(ThresholdDetector):
        """Dimmer blocks have half the score that the plan asks for; one more weak box lies across two blocks."""

        def boxes(self, slices, min_score, nms_iou):
            result = []
            for picture, found in zip(slices, super().boxes(slices, min_score, nms_iou), strict=True):
                for row in found:
                    x0, y0, x1, y1 = (int(v) for v in row[:4])
                    row[4] = 0.9 if picture[0, y0:y1, x0:x1].max() > 0.95 else 0.15
                between = torch.tensor([[30.0, 20.0, 50.0, 34.0, 0.15]])
                every = torch.cat([found, between]) if len(found) else found
                result.append(every[every[:, 4] >= min_score])
            return result

    found = locate(hu_volume(array, PLAN), [Scored()], PLAN, CPU)
    assert len(found) == 6
    np.testing.assert_allclose([v.box_centre[2] for v in found], centres[:, 0] * 2.0, atol=3.0)
    assert found[2].score < 0.5 * found[1].score


def test_the_number_of_slices_follows_from_the_scan():
    detectors = Detectors([ThresholdDetector()], replace(PLAN, run=replace(PLAN.run, inference_batch=1)), CPU)
    array, _ = blocks((90, 80, 80), 6, x=40, y=40)
    for gap in (4.0, 8.0):
        _, gaps = look(array, Field.whole(array.shape), gap, 200, detectors, 0.25)
        assert gaps == {"sagittal": gap, "coronal": gap}
