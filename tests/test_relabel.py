"""Naming anybody's label map: bodies are kept voxel by voxel whatever their values, grid and axes; only their names are new."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import spine
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import DATASET, small_plans, write_results
from test_bad_commands import refused, run

from spineclue_v2.anatomy import LABEL_OF_NAME, LEVELS, NUM_LEVELS
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import Volume, read_labels, write_volume
from spineclue_v2.inference.bodies import find_bodies, name_bodies, to_vertebra
from spineclue_v2.inference.model import Model, load_shipped, load_trained
from spineclue_v2.inference.pipeline import Options
from spineclue_v2.inference.relabel import relabel
from spineclue_v2.plans.data import Data
from spineclue_v2.preprocessing.resampling import labels_to_network_space, network_grid
from spineclue_v2.stages.appearance import predictor as appearance_predictor
from spineclue_v2.stages.geometry.features import Batch
from spineclue_v2.training.stage_model import StageModel
from spineclue_v2.utilities import paths

NAMES = ["T11", "T12", "L1", "L2", "L3"]
SMALLEST_ML = 2.0


class KnowsTheHeights(torch.nn.Module):
    """A network of the geometry classifier for tests: sure of the level of whatever lies at a known height (world z, mm)."""

    def __init__(self, heights: dict[str, float]) -> None:
        super().__init__()
        self.heights = heights

    def forward(self, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(self.probabilities(batch.centres[0].numpy()))[None]

    def probabilities(self, centres: np.ndarray) -> np.ndarray:
        """(n, 26) over C1..L5, "no vertebra" and L6."""
        share = np.full((len(centres), NUM_LEVELS + 2), 1e-4)
        for row, centre in zip(share, centres, strict=True):
            name, height = min(self.heights.items(), key=lambda item: abs(item[1] - centre[2]))
            row[LEVELS.index(name) if abs(height - centre[2]) < 12 else NUM_LEVELS] = 1.0
        return share / share.sum(1, keepdims=True)


def on_heights(labels: Volume, centres: dict[str, tuple[float, ...]]) -> dict[str, float]:
    return {name: labels.geometry.origin[2] + centre[0] for name, centre in centres.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def untrained(folder) -> Model:
    return load_trained(folder, ["0"], torch.device("cpu"))


@pytest.fixture
def example(untrained) -> tuple[Volume, Model]:
    """A spine T11..L3 and a model that names it by height."""
    _, labels, centres = spine(NAMES, (2.0, 1.5, 1.5))
    untrained.stages["geometry"] = StageModel([KnowsTheHeights(on_heights(labels, centres))], [{}], [{}], [""])
    return labels, untrained


BY_HEIGHT = Options(classifiers=("geometry",))


def scrambled(labels: np.ndarray, values: list[int]) -> np.ndarray:
    table = np.zeros(256, np.uint16)
    for name, value in zip(NAMES, values, strict=True):
        table[LABEL_OF_NAME[name]] = value
    return table[labels]


@pytest.mark.parametrize("values, orientation", [
    ([20, 21, 22, 23, 24], "LPS"), ([1, 2, 3, 4, 5], "RAS"), ([9, 4, 200, 31, 7], "SLP"), ([1, 1, 1, 1, 1], "LPS"),
    ([1, 1, 1, 1, 1], "IRP"), ([1000, 2, 2, 40000, 2], "LAS"),
], ids=["off by one", "instances", "any", "one value", "one value upside down", "large and shared"])
def test_values_and_axes_do_not_matter(example, tmp_path, values, orientation):
    labels, model = example
    given_map = Volume(scrambled(labels.array, values), labels.geometry).reoriented(orientation)
    write_volume(given_map, tmp_path / "given.nii.gz")
    result = relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", model, BY_HEIGHT)
    assert [v.level for v in result.vertebrae] == NAMES
    named = read_labels(tmp_path / "named.nii.gz")
    assert named.geometry.same_grid(given_map.geometry)
    assert np.array_equal(named.reoriented("LPS").array, labels.array)


def test_the_record_is_that_of_a_prediction(example, tmp_path):
    labels, model = example
    write_volume(Volume(scrambled(labels.array, [5, 4, 3, 2, 1]), labels.geometry), tmp_path / "given.nii.gz")
    relabel(tmp_path / "given.nii.gz", tmp_path / "case.nii.gz", model, BY_HEIGHT)
    record = json.loads((tmp_path / "case.json").read_text())
    assert record["status"] == "ok" and record["numbering_anchored"] is True and record["plans"] == model.record
    assert [v["label"] for v in record["vertebrae"]] == [LABEL_OF_NAME[name] for name in NAMES]
    for vertebra in record["vertebrae"]:
        body = read_labels(tmp_path / "case.nii.gz").array == vertebra["label"]
        assert vertebra["volume_ml"] == pytest.approx(body.sum() * 2.0 * 1.5 * 1.5 / 1000, rel=0.15)
        assert sum(vertebra["probabilities"].values()) == pytest.approx(1, abs=1e-3) and not vertebra["touches_border"]
    centres = json.loads((tmp_path / "case_ctd.json").read_text())
    assert [row["label"] for row in centres[1:]] == [LABEL_OF_NAME[name] for name in NAMES]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.json", "case.nii.gz", "case_cads.nii.gz", "case_ctd.json", "given.nii.gz"]


def test_islands_are_dropped_fragments_kept_and_other_structures_ignored(example, tmp_path):
    labels, model = example
    array = labels.array.copy()
    l2 = array == LABEL_OF_NAME["L2"]
    rows = np.argwhere(l2)
    middle = rows[:, 0].min() + (np.ptp(rows[:, 0]) // 2)
    y_cut = rows[:, 1].max() - 4
    piece = l2.copy()
    piece[:, :y_cut] = False
    assert piece[middle].any()
    array[l2 & (np.arange(array.shape[1])[None, :, None] == y_cut)] = 0      # the tip of the spinous process comes off
    piece[:, y_cut] = False
    array[0:2, -2:, 0:2] = LABEL_OF_NAME["T11"]                               # a speck far from its vertebra
    array[-6:, :12, :12] = 99                                                 # something else, as large as a vertebra
    write_volume(Volume(array, labels.geometry), tmp_path / "given.nii.gz")
    result = relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", model, BY_HEIGHT, ignore=[99])
    named = read_labels(tmp_path / "named.nii.gz").array
    assert [v.level for v in result.vertebrae] == NAMES
    assert not named[0:2, -2:, 0:2].any() and not named[-6:, :12, :12].any()
    assert "islands" in " ".join(result.notes)
    assert set(np.unique(named[piece])) == {LABEL_OF_NAME["L2"]}


def test_a_piece_level_with_its_body_belongs_to_it_and_one_below_does_not():
    array = np.zeros((60, 40, 40), np.uint8)
    array[30:50, 2:20, 5:35] = 1       # a body
    array[36:44, 24:36, 14:26] = 1     # its arch, come off
    array[4:12, 2:14, 10:30] = 1       # the upper part of the next vertebra, cut by the border
    _, labels, _ = spine(["L1"], (1.0, 1.0, 1.0))
    bodies, dropped = find_bodies(Volume(array, labels.geometry.cropped((0, 0, 0), array.shape)), 1.0)
    assert dropped == 0 and sorted(int(b.mask.sum()) for b in bodies) == [8 * 12 * 20, 20 * 18 * 30 + 8 * 12 * 12]


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(0.7, 3.0)] * 3), st.floats(0.8, 2.5), st.sampled_from(NAMES))
def test_crops_give_the_masks_that_the_whole_volume_gives(spacing, model_spacing, name):
    """What reaches the network is what preprocessing makes of the whole label map, at any pair of spacings."""
    _, labels, _ = spine(NAMES, spacing)
    labels = Volume(np.where(labels.array == LABEL_OF_NAME[name], labels.array, 0), labels.geometry)
    data = Data(model_spacing)
    target = network_grid(labels.geometry, data)
    whole = labels_to_network_space(labels, target).array > 0
    bodies, _ = find_bodies(labels, 0.0)
    for body in bodies:
        vertebra = to_vertebra(body, labels.geometry, data)
        if vertebra is None:
            assert body.mask.sum() * np.prod(spacing) < 10 * model_spacing ** 3
            continue
        box = tuple(slice(a, a + n) for a, n in zip(vertebra.mask_start, vertebra.mask.shape, strict=True))
        assert (vertebra.mask | ~whole[box]).all()          # filled holes may add, nothing is lost
        whole[box] &= ~vertebra.mask
        assert vertebra.volume_ml == pytest.approx(vertebra.mask.sum() * model_spacing ** 3 / 1000)
        inside = np.argwhere(vertebra.mask).mean(0) + vertebra.mask_start
        assert vertebra.mask_centroid == pytest.approx(target.index_to_world(inside))
    assert not whole.any()


def test_a_cut_vertebra_touches_the_border(example):
    labels, model = example
    top = np.argwhere(labels.array == LABEL_OF_NAME["T11"])[:, 0]
    cut = labels.cropped((0, 0, 0), (int(top.max()) - 2, *labels.array.shape[1:]))
    bodies, _ = find_bodies(cut, 0.5)
    result, owners = name_bodies(bodies, cut.geometry, model, BY_HEIGHT)
    assert [v.touches_border for v in result.vertebrae] == [True, False, False, False, False]
    assert [level for _, level in owners] == NAMES


def test_the_appearance_classifier_counts_where_the_scan_is_given(example, tmp_path, monkeypatch):
    labels, model = example
    by_height = model.stages["geometry"].networks[0]

    def looks_at_the_scan(scan: Volume, centres: np.ndarray, *_: object) -> np.ndarray:
        assert scan.array.dtype == np.int16
        return np.log(by_height.probabilities(centres)[:, :NUM_LEVELS + 1])

    monkeypatch.setattr(appearance_predictor, "log_probabilities", looks_at_the_scan)
    monkeypatch.setitem(model.stages, "appearance", StageModel(
        [], [{"weight": dict.fromkeys(appearance_predictor.REGIONS, 1.0)}], [{}], []))
    monkeypatch.setitem(model.plans.stages, "appearance", small_plans().stage("appearance"))
    write_volume(Volume(scrambled(labels.array, [20, 21, 22, 23, 24]), labels.geometry), tmp_path / "given.nii.gz")
    write_volume(Volume(np.where(labels.array > 0, 500, -500).astype(np.int16), labels.geometry), tmp_path / "ct.nii.gz")
    enabled = Options(classifiers=("appearance",))
    result = relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", model, enabled, scan=tmp_path / "ct.nii.gz")
    assert [v.level for v in result.vertebrae] == NAMES
    without = relabel(tmp_path / "given.nii.gz", tmp_path / "other.nii.gz", model, enabled)
    assert max(v.confidence for v in without.vertebrae) < 0.9 < min(v.confidence for v in result.vertebrae)


def test_the_shape_network_sees_every_body_once(example):
    labels, model = example
    seen: list[int] = []
    network = model.stages["identify"].networks[0]
    features = network.features
    network.features = lambda x: (seen.append(len(x)), features(x))[1]
    try:
        result, _ = name_bodies(find_bodies(labels, SMALLEST_ML)[0], labels.geometry, model)
    finally:
        del network.features
    assert sum(seen) == len(NAMES) and all(v.probabilities.shape == (NUM_LEVELS,) for v in result.vertebrae)


def test_an_empty_map_is_a_result(example, tmp_path):
    labels, model = example
    write_volume(Volume(np.zeros_like(labels.array), labels.geometry), tmp_path / "given.nii.gz")
    assert relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", model).vertebrae == ()
    assert json.loads((tmp_path / "named.json").read_text())["status"] == "no vertebra found"
    assert not read_labels(tmp_path / "named.nii.gz").array.any()


def test_maps_that_are_no_vertebrae_are_refused(example, tmp_path):
    labels, model = example
    grid = np.zeros((52, 52, 52), np.uint8)
    for corner in np.ndindex(4, 4, 4):
        grid[tuple(slice(13 * c, 13 * c + 11) for c in corner)] = 1
    geometry = labels.geometry.cropped((0, 0, 0), grid.shape)
    write_volume(Volume(grid, geometry), tmp_path / "grid.nii.gz")
    noise = np.random.default_rng(0).integers(0, 4000, (20, 20, 20)).astype(np.uint16)
    write_volume(Volume(noise, geometry.cropped((0, 0, 0), noise.shape)), tmp_path / "noise.nii.gz")
    with pytest.raises(InputError, match="64 separate bodies"):
        relabel(tmp_path / "grid.nii.gz", tmp_path / "out.nii.gz", model)
    with pytest.raises(InputError, match="different values"):
        relabel(tmp_path / "noise.nii.gz", tmp_path / "out.nii.gz", model)
    with pytest.raises(InputError, match="it is the input"):
        relabel(tmp_path / "grid.nii.gz", tmp_path / "grid.nii.gz", model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.nii.gz", "noise.nii.gz"]


def test_a_body_that_the_classifiers_leave_out_continues_the_tools_row(example, tmp_path):
    """Our classifiers take the uppermost for no vertebra; the tool numbers it next to the end of the row, and there it lies."""
    labels, model = example
    del model.stages["geometry"].networks[0].heights[NAMES[0]]
    write_volume(labels, tmp_path / "given.nii.gz")
    relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", model, BY_HEIGHT, scheme="verse")
    assert np.array_equal(read_labels(tmp_path / "named.nii.gz").array, labels.array)
    other = np.where(labels.array == LABEL_OF_NAME[NAMES[0]], LABEL_OF_NAME["T5"], labels.array)
    write_volume(Volume(other, labels.geometry), tmp_path / "given.nii.gz")
    result = relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", model, BY_HEIGHT, scheme="verse")
    assert [v.level for v in result.vertebrae] == NAMES[1:]


def test_an_interruption_leaves_the_earlier_result(example, tmp_path, monkeypatch):
    labels, model = example
    write_volume(labels, tmp_path / "given.nii.gz")
    relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", model, BY_HEIGHT)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spineclue_v2.inference.relabel.write_ctd", stopped)
    with pytest.raises(KeyboardInterrupt):
        relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", model, BY_HEIGHT)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_command(example, tmp_path, capsys, monkeypatch):
    from spineclue_v2.inference import model as models

    labels, model = example
    monkeypatch.setattr(models, "load_shipped", lambda device, modality: model)
    write_volume(labels, tmp_path / "given.nii.gz")
    ct = spine(NAMES, (2.0, 1.5, 1.5))[0]
    write_volume(ct, tmp_path / "ct.nii.gz")
    common = ("relabel", "-i", tmp_path / "given.nii.gz", "-device", "cpu")
    assert run(*common, "-o", tmp_path / "named.nii.gz", "-ct", tmp_path / "ct.nii.gz") == 0
    said = capsys.readouterr().out
    assert said.startswith(str(tmp_path / "named.nii.gz"))
    assert (tmp_path / "named.png").stat().st_size > 10_000 and (tmp_path / "named_measures.png").exists()
    assert (tmp_path / "named_measures.csv").exists() and read_labels(tmp_path / "named_parts.nii.gz").geometry.same_grid(labels.geometry)
    record = json.loads((tmp_path / "named.json").read_text())
    assert {row["name"] for row in record["measures"]["heights"]} == {"height loss"}
    assert {row["confidence"] for row in record["measures"]["heights"]} <= {round(v["confidence"], 4) for v in record["vertebrae"]}
    other = Volume(ct.array[:-1], ct.geometry.cropped((0, 0, 0), (ct.array.shape[0] - 1, *ct.array.shape[1:])))
    write_volume(other, tmp_path / "other.nii.gz")
    assert "another grid" in refused(capsys, *common, "-o", tmp_path / "n.nii.gz", "-ct", tmp_path / "other.nii.gz")
    assert "ends with" in refused(capsys, *common, "-o", tmp_path / "n.png")
    assert "does not exist" in refused(capsys, "relabel", "-i", tmp_path / "no.nii.gz", "-o", tmp_path / "n.nii.gz", "-device", "cpu")
    assert not list(tmp_path.glob("n.*"))


def test_a_model_folder_can_be_chosen(example, folder, tmp_path):
    labels, _ = example
    write_volume(labels, tmp_path / "given.nii.gz")
    assert run("relabel", "-i", tmp_path / "given.nii.gz", "-o", tmp_path / "named.nii.gz", "-m", folder, "-device", "cpu") == 0
    assert DATASET in json.loads((tmp_path / "named.json").read_text())["plans"]["source"]
    assert Path(tmp_path / "named.nii.gz").exists()


SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "ct"
REAL = {"verse/sub-verse004_seg-vert_msk": {}, "verse/sub-verse005_seg-vert_msk": {}, "verse/sub-verse008_seg-vert_msk": {},
        "totalsegmentator/example_ct_lumbar_ref": {27 + i: 24 - i for i in range(7)}}  # file: {its value: VerSe's}


@pytest.mark.parametrize("name", REAL)
def test_real_masks_get_their_own_names_back(name, tmp_path):
    file = SHARED / f"{name}.nii.gz"
    if not file.exists() or not (paths.weights_folder() / "identify.pth").exists():
        pytest.skip("needs shared data and the shipped weights")
    truth = read_labels(file)
    array = np.where(truth.array == 26, 0, truth.array).astype(np.uint8) if REAL[name] else truth.array
    values = [int(value) for value in np.unique(array) if value]
    expected, given_map = np.zeros_like(array), np.zeros_like(array)
    for number, value in enumerate(values):
        expected[array == value] = REAL[name].get(value, value)
        given_map[array == value] = 1 + (3 * number + 1) % len(values) if len(values) % 3 else 1 + (number + 2) % len(values)
    write_volume(Volume(given_map, truth.geometry), tmp_path / "given.nii.gz")
    relabel(tmp_path / "given.nii.gz", tmp_path / "named.nii.gz", load_shipped(torch.device("cpu")))
    named = read_labels(tmp_path / "named.nii.gz").array
    assert set(np.unique(named)) == set(np.unique(expected))
    assert (named != expected).sum() < 1e-3 * (expected > 0).sum()     # loose voxels and cavities are mended, nothing else
