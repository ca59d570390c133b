"""TPTBox's angle functions (Hendrik-code/TPTBox, Apache-2.0, `pip install TPTBox`; no dependency of this package) on our maps.

It asks for points of each vertebra, which it computes from a map of vertebrae and one of sub-regions, and takes the directions of
vertebrae, averaged with the next one at a disc, where we take end plates.
"""
from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from spineclue_v2.anatomy import NAME_OF_LABEL, VERTEBRA_LABELS
from spineclue_v2.imageio.volume import Volume, write_volume


def their_angles(labels: Volume, parts: np.ndarray) -> dict[str, object]:
    """Lordosis and kyphosis, and the largest Cobb angle with its end vertebrae, by TPTBox 1.1; unsigned degrees."""
    from TPTBox import calc_poi_from_subreg_vert
    from TPTBox.core.vert_constants import Location, Vertebra_Instance
    from TPTBox.spine.spinestats.angles import compute_lordosis_and_kyphosis, compute_max_cobb_angle

    view = labels.reoriented("LPS")
    # The middles of both end plates stand in where a disc is missing.
    wanted = [Location.Vertebra_Corpus, Location.Vertebra_Direction_Posterior, Location.Vertebra_Direction_Right, Location.Vertebra_Disc,
              Location.Additional_Vertebral_Body_Middle_Superior_Median, Location.Additional_Vertebral_Body_Middle_Inferior_Median]
    with tempfile.TemporaryDirectory() as folder:
        vertebrae, regions = Path(folder) / "vertebrae.nii.gz", Path(folder) / "regions.nii.gz"
        region = Volume(parts, labels.geometry).reoriented("LPS")
        write_volume(Volume(with_discs(view.array, region.array), view.geometry), vertebrae)
        write_volume(region, regions)
        points = calc_poi_from_subreg_vert(vertebrae, regions, subreg_id=wanted)
        found: dict[str, object] = dict(compute_lordosis_and_kyphosis(points))
        ends = [place.value for place in wanted[-2:]]
        there = [v for v in VERTEBRA_LABELS if (labels.array == v).any() and all((v, end) in points for end in ends)]
        measurable = [Vertebra_Instance(v) for v in there]
        angle, first, last, apex = compute_max_cobb_angle(points, measurable)
    names = [NAME_OF_LABEL.get(int(label), str(label)) for label in (first, last, apex) if label is not None]
    return found | {"largest Cobb angle (ends, apex)": f"{angle} {' '.join(names)}"}


def with_discs(vertebrae: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Label values of vertebrae that have sub-regions, and 100 more for the disc below each, as TPTBox has them."""
    import cc3d
    from scipy.ndimage import binary_dilation

    found = np.where((regions > 0) & (regions < 100), vertebrae, 0).astype(np.uint8)
    discs, count = cc3d.connected_components((regions == 100).astype(np.uint8), connectivity=26, return_N=True)
    for number in range(1, count + 1):
        disc = discs == number
        beside = vertebrae[binary_dilation(disc, iterations=3)]
        if disc.sum() > 50 and (beside > 0).any():
            found[disc] = 100 + int(beside[beside > 0].min())
    return found
