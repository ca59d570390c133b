"""A vertebra's fields for code that runs after a stage, and the typed tuples behind them."""
from __future__ import annotations

import numpy as np
import pytest

from spineclue_v2.anatomy.vertebra import Vertebra, vertebra_from_record, vertebra_record
from spineclue_v2.utilities.triples import box_slices, float_triple, int_triple

LOCATED = Vertebra((1.0, 2.0, 3.0), (20.0, 30.0, 40.0), 0.9, hits=7)
MASK = np.ones((2, 3, 4), dtype=bool)


@pytest.mark.parametrize(("field", "stage"), [("mask", "segment"), ("mask_start", "segment"), ("body_centre", "segment"),
                                              ("volume_ml", "segment"), ("level", "identify")])
def test_a_field_of_a_stage_that_has_not_run_is_named(field, stage):
    with pytest.raises(ValueError, match=rf"no {field}; the stage {stage} has to run first"):
        getattr(LOCATED, f"known_{field}")


def test_filled_fields_come_back_as_they_are():
    vertebra = Vertebra((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0, mask=MASK, mask_start=(5, 6, 7), body_centre=(1.0, 2.0, 3.0), volume_ml=0.0,
                        level="L1")
    assert vertebra.known_mask is MASK and vertebra.known_mask_start == (5, 6, 7) and vertebra.known_body_centre == (1.0, 2.0, 3.0)
    assert vertebra.known_volume_ml == 0.0 and vertebra.known_level == "L1"     # 0 is a value, None is not
    whole = np.zeros((10, 10, 12), dtype=bool)
    whole[vertebra.mask_box] = vertebra.known_mask
    assert whole.sum() == MASK.size and whole[5:7, 6:9, 7:11].all()


def test_a_record_gives_the_vertebra_back():
    assert vertebra_from_record(vertebra_record(LOCATED)) == LOCATED


def test_three_numbers_are_plain_python_and_exactly_three():
    assert float_triple(np.arange(3, dtype=np.float32)) == (0.0, 1.0, 2.0)
    assert all(type(value) is float for value in float_triple(np.arange(3))) and all(type(n) is int for n in int_triple(np.ones(3)))
    assert box_slices(np.array([1, 0, -2]), (2, 3, 4)) == (slice(1, 3), slice(0, 3), slice(-2, 2))
    for make in (float_triple, int_triple):
        with pytest.raises(ValueError):
            make([1, 2])
        with pytest.raises(ValueError):
            make(range(4))
    with pytest.raises(ValueError):
        box_slices((0, 0), (1, 1))
