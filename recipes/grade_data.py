"""Training cases of stage `grade`: CT in network space and masks as the shipped networks give them, named as the truth is.

Phantoms show T4 to L5 with two to six fractures each: a batch holds all grades equally often. Those that are learned have true masks made
like predicted ones (blurred, with rough surfaces), since a phantom is made four times as fast as it is segmented; those that
probabilities are fitted on, those of the test, and real scans have the masks that the shipped stages up to segment predict.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.anatomy import LABEL_OF_NAME, NAME_OF_LABEL, ORDER_INDEX
from spineclue_v2.anatomy.morphology import fill_holes, largest_component
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.dataset.raw import GRADES_FILE
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_volume
from spineclue_v2.inference.model import Model
from spineclue_v2.stages.grade.body_heights import add_heights
from spineclue_v2.stages.grade.comparison import GRADED
from spineclue_v2.utilities.files import read_json, write_json
from spineclue_v2.utilities.triples import box_slices, float_triple

from .real_cases import read_points, read_reference

FIRST_SEED = {"train": 7_200_000, "fit": 7_300_000, "test": 7_400_000}
FIRST, LAST = "T4", "L5"
FRACTURES = (2, 6)        # of a phantom, fewest and most; of patients' vertebrae one in twenty has one
MARGIN_MM = 15.0          # kept of the scan around the masks
SAME = 0.5                # Dice from which a mask shows a true vertebra
NEAR_MM = 10.0            # from a point in a body to the middle of its body in a mask
BLUR, ROUGH, GRAIN = 0.8, 0.14, 1.5   # masks made like predicted ones: blur of the true one, noise added, the noise's grain (voxels)
REAL = {   # case -> (patient, scan below the data folder); no coarse necks and no slices of 8 mm, whose heights are refused
    "rider": ("rider", "ct/unlabelled/rider_chest_1p5mm.nii.gz"), "cmb": ("cmb", "ct/unlabelled/cmb_chest_1p5x2p5mm.nii.gz"),
    "totalsegmentator": ("totalsegmentator", "ct/totalsegmentator/example_ct.nii.gz"),
    "pancreas": ("pancreas", "ct/by_eye/pancreas_ct_cb_001.nii.gz"), "taichi_sag": ("taichi", "ct/by_eye/taichi_lumbar_sag.nii.gz"),
    "verse005": ("verse005", "ct/verse/sub-verse005_ct.nii.gz"), "verse008": ("verse008", "ct/verse/sub-verse008_ct.nii.gz"),
    "taichi_cor": ("taichi", "ct/by_eye/taichi_lumbar_cor.nii.gz"), "c3l00189": ("c3l00189", "ct/by_eye/cptac_c3l00189_5mm.nii.gz"),
    "tptbox": ("tptbox", "ct/tptbox/sub-ct_label-22_ct.nii.gz"), "lidc0117": ("lidc0117", "ct/by_eye/lidc0117_lowchest_75mm.nii.gz"),
    "elastix": ("elastix", "ct/unlabelled/elastix_lung_baseline.nii.gz")}
READ = {"verse008": {"L2": 2}, "verse005": {"L1": 1, "L2": 1, "L3": 1, "L4": 1}}   # readers' grades; the rest of REAL counts as intact


def settings(part: str, number: int) -> tuple[int, dict[str, Any]]:
    """Seed and switches of `phantom.sample` of case `number` of "train", "fit" or "test"."""
    seed = FIRST_SEED[part] + number
    rng = np.random.default_rng([seed, 5])
    return seed, {"first": FIRST, "last": LAST, "wide": False, "fractures": int(rng.integers(FRACTURES[0], FRACTURES[1] + 1)),
                  "spacing": (float(rng.uniform(1.2, 3.0)), 1.5, 1.5)}


def make_phantom(work: Path, part: str, number: int, model: Model) -> None:
    """Case PART_NUMBER and its truth; kept where it exists."""
    from spineclue_v2.phantom import sample
    from spineclue_v2.preprocessing.resampling import labels_to_network_space, to_network_space

    name = f"{part}_{number:03d}"
    if (work / "cases" / f"{name}.json").is_file():
        return
    seed, switches = settings(part, number)
    case = sample(seed, **switches)
    grid = ImageGrid(case.ct.shape, tuple(case.spacing), (0.0, 0.0, 0.0), case.direction)
    scan, labels = (Volume(array, grid).reoriented("LPS") for array in (case.ct, case.labels))
    vertebrae: tuple[Vertebra, ...] = ()
    if part == "train":
        crop = to_network_space(scan, model.plans.stage("segment").data)
        found = roughened(labels_to_network_space(labels, crop.geometry, None).array, np.random.default_rng([seed, 6]))
    else:
        vertebrae, crop = masks_of(scan, model)
        found = named_by(vertebrae, labels_to_network_space(labels, crop.geometry, None).array)
    write_json(work / "truth" / f"{name}.json", {level: grade for level, grade in case.grades.items() if level in GRADED})
    write_masks(work / "cases", name, crop, found, grid, vertebrae)


def make_real(work: Path, data: Path, name: str, model: Model) -> None:
    """Case real_NAME, named by its reference masks or by points that were set by eye; kept where it exists."""
    from spineclue_v2.preprocessing.resampling import labels_to_network_space

    if (work / "cases" / f"real_{name}.json").is_file():
        return
    path = REAL[name][1]
    scan = read_volume(data / path)
    vertebrae, crop = masks_of(scan, model)
    points = read_points(data).get(path)
    if points is None:
        reference = read_reference(data, path)
        found = named_by(vertebrae, labels_to_network_space(reference, crop.geometry, None).array)
    else:
        found = np.zeros(crop.array.shape, np.uint8)
        places = np.array([v.known_body_centre for v in vertebrae])
        for point in points:
            away = np.linalg.norm(places - point.place, axis=1)
            if away.min() <= NEAR_MM:
                _paint(found, replace(vertebrae[int(away.argmin())], level=point.level))
    levels = [NAME_OF_LABEL[int(value)] for value in np.unique(found) if value]
    write_json(work / "truth" / f"real_{name}.json", {level: READ.get(name, {}).get(level, 0) for level in levels if level in GRADED})
    write_masks(work / "cases", f"real_{name}", crop, found, scan.geometry, vertebrae)


def masks_of(scan: Volume, model: Model) -> tuple[tuple[Vertebra, ...], Volume]:
    """Vertebrae with masks by the stages up to segment, and the part of the scan, in network space, on whose grid they lie."""
    from spineclue_v2.inference.pipeline import stages_of
    from spineclue_v2.preprocessing.straighten import straightened
    from spineclue_v2.stages.base import Context, Findings, Options

    context, findings = Context(model.plans, model.device, Options(), model.stages), Findings(straightened(scan))
    for stage in stages_of(model):
        findings = stage.predict(findings, model.stages.get(stage.name), context)
        if stage.name == "segment":
            break
    assert findings.crop is not None
    return findings.vertebrae, findings.crop


def named_by(vertebrae: tuple[Vertebra, ...], truth: np.ndarray) -> np.ndarray:
    """Label map (VerSe values) of predicted masks; each has the name of the true vertebra that it shows, or is left out."""
    found, sizes = np.zeros(truth.shape, np.uint8), np.bincount(truth.ravel(), minlength=256)
    for v in vertebrae:
        shared = np.bincount(truth[v.mask_box][v.known_mask], minlength=256)
        shared[0] = 0
        value = int(shared.argmax())
        if value in NAME_OF_LABEL and 2 * shared[value] >= SAME * (sizes[value] + v.known_mask.sum()):
            _paint(found, replace(v, level=NAME_OF_LABEL[value]))
    return found


def _paint(labels: np.ndarray, vertebra: Vertebra) -> None:
    labels[vertebra.mask_box][vertebra.known_mask] = LABEL_OF_NAME[vertebra.known_level]


def roughened(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """True masks (VerSe values, network space) as a network would have them: edges blurred, surfaces rough, one piece without holes."""
    from scipy.ndimage import gaussian_filter

    from spineclue_v2.anatomy.label_boxes import label_boxes

    noise = gaussian_filter(rng.normal(size=truth.shape).astype(np.float32), GRAIN)
    noise *= ROUGH * rng.uniform(0.5, 1.5) / noise.std()
    best, found = np.full(truth.shape, 0.5, np.float32), np.zeros(truth.shape, np.uint8)
    for value, box in label_boxes(truth).items():
        wide = tuple(slice(max(side.start - 4, 0), side.stop + 4) for side in box)
        chance = gaussian_filter((truth[wide] == value).astype(np.float32), BLUR * rng.uniform(0.5, 1.5)) + noise[wide]
        mask = fill_holes(largest_component(chance > 0.5)) if (chance > 0.5).any() else chance > 0.5
        wins = mask & ((chance > best[wide]) | (found[wide] == 0))
        best[wide][wins], found[wide][wins] = chance[wins], value
    return found


def write_masks(folder: Path, name: str, crop: Volume, labels: np.ndarray, source: ImageGrid, vertebrae: tuple[Vertebra, ...]) -> None:
    """A case as `PreprocessedDataset` reads it, cut to the masks of `labels`, and NAME_probability.b2nd: how sure the masks of `vertebrae`
    are (255 = 1); complete once the JSON is there."""
    from spineclue_v2.preprocessing.ct import vertebra_properties
    from spineclue_v2.preprocessing.files import write_blosc2

    inside = [np.flatnonzero(labels.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    reach = np.ceil(MARGIN_MM / np.array(crop.spacing)).astype(int)
    low = np.maximum([i[0] for i in inside] - reach, 0)
    high = np.minimum([i[-1] + 1 for i in inside] + reach, labels.shape)
    sure = np.zeros(labels.shape, np.uint8)
    for v in vertebrae:
        if v.mask_probability is not None:
            sure[v.mask_box] = np.maximum(sure[v.mask_box], v.mask_probability)
    image, found, sure_of = (Volume(np.ascontiguousarray(part.array), part.geometry)
                             for part in (Volume(array, crop.geometry).cropped(low, high) for array in (crop.array, labels, sure)))
    folder.mkdir(parents=True, exist_ok=True)
    if vertebrae:
        write_blosc2(folder / f"{name}_probability.b2nd", sure_of)
    write_blosc2(folder / f"{name}.b2nd", image)
    write_blosc2(folder / f"{name}_seg.b2nd", found)
    write_json(folder / f"{name}.json", {"geometry": image.geometry.to_json(), "source_geometry": source.to_json(), "source_digest": "",
                                         "vertebrae": vertebra_properties(found)})


def stored_vertebrae(data: PreprocessedDataset, case: str) -> tuple[Vertebra, ...]:
    """Vertebrae of a stored case, cranio-caudal, with their heights or the doubt in them."""
    content, labels = data.properties(case), data.labels(case)[:]
    geometry, rows = ImageGrid.from_json(content["geometry"]), []
    for level, found in sorted(content["vertebrae"].items(), key=lambda item: ORDER_INDEX.get(item[0], -1)):
        box = box_slices(found["start"], np.subtract(found["stop"], found["start"]))
        centre = float_triple(geometry.index_to_world(np.array(found["body_centre"])))
        rows.append(Vertebra(centre, (0.0, 0.0, 0.0), 1.0, mask=labels[box] == found["label"], mask_start=tuple(found["start"]),
                             body_centre=centre, level=level, touches_border=found["touches_border"]))
    return add_heights(tuple(rows), geometry, source=ImageGrid.from_json(content["source_geometry"]))


def write_grades(work: Path) -> None:
    """The truth of all cases as the trainer reads it."""
    write_json(work / GRADES_FILE, {path.stem: read_json(path, "grades") for path in sorted((work / "truth").glob("*.json"))})
