"""Network and heights weighed together, what both are worth on phantoms and real scans, and the weights in the package's form."""
from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.evaluation.grading import summarise
from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.inference.model import load_stage
from spineclue_v2.model_sharing.export_model import write_shipped_stage
from spineclue_v2.stages.grade.ordinal_fusion import OrdinalFusion, grade_of_probabilities
from spineclue_v2.stages.grade.predictor import add_grades
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.utilities.files import read_json, write_json

from .folds import FOLDS, PATIENTS
from .grade_data import READ, REAL, stored_vertebrae
from .grade_weights import CPU, folder_of

PATIENTS_SHARE = 0.05     # of the thoracic and lumbar vertebrae of patients that are fractured (Wei et al.)
SILENT = (0.25, 0.25, 0.25, 0.25)   # a network that says nothing
logger = logging.getLogger("spineclue_v2.training")


@dataclass(frozen=True)
class Row:
    """One vertebra whose truth is known."""

    case: str
    level: str
    grade: int
    implied: int                        # Genant grade by heights, 0 where there are none
    loss: float | None                  # largest loss of height
    network: tuple[float, ...] | None   # probabilities of grades 0 to 3


def rows_of(work: Path, cases: list[str], checkpoint: Path | None) -> list[Row]:
    """Graded vertebrae of `cases` as heights and the network of `checkpoint` see them; those without a mask have neither."""
    data, rows = PreprocessedDataset(work / "cases"), []
    model = plans = None
    if checkpoint is not None:
        model, plans = load_stage(checkpoint, "grade", CPU)
    for case in cases:
        found = stored_vertebrae(data, case)
        if model is not None and plans is not None:
            image = Volume(data.image(case)[:], ImageGrid.from_json(data.properties(case)["geometry"]))
            found = add_grades(found, image, model, plans.stage("grade"), CPU)
        by_level = {v.level: v for v in found}
        for level, grade in read_json(work / "truth" / f"{case}.json", "grades").items():
            rows.append(_row(case, level, grade, by_level.get(level)))
    return rows


def _row(case: str, level: str, grade: int, v: Vertebra | None) -> Row:
    heights = None if v is None else v.heights
    loss = None if heights is None or heights.loss is None else max(heights.loss)
    return Row(case, level, grade, 0 if heights is None or heights.grade is None else heights.grade, loss,
               None if v is None else v.grade_probabilities)


def intact_times(rows: list[Row]) -> int:
    """How often an intact vertebra of `rows` counts so that fractures are as rare among them as in patients."""
    fractured = sum(row.grade > 0 for row in rows)
    return max(1, round(fractured * (1 - PATIENTS_SHARE) / PATIENTS_SHARE / max(1, len(rows) - fractured)))


def as_in_patients(rows: list[Row]) -> list[Row]:
    times = intact_times(rows)
    return [row for row in rows for _ in range(1 if row.grade else times)]


def fit(rows: list[Row], silent: bool = False) -> OrdinalFusion:
    """Network and heights weighed on `rows`; `silent`: heights alone."""
    known = as_in_patients([row for row in rows if row.loss is not None and row.network is not None])
    found = OrdinalFusion.fit([row.grade for row in known], np.array([SILENT if silent else row.network for row in known]),
                              [row.loss for row in known if row.loss is not None])
    assert found is not None
    return found


def said(rows: list[Row], by: str, fusion: OrdinalFusion | None = None) -> list[tuple[int, float]]:
    """(grade, score that grows with the suspicion) of each row by "heights", "network", or a `fusion`; (0, 0) where it is silent."""
    answers = []
    for row in rows:
        if by == "heights":
            answers.append((row.implied, row.loss or 0.0))
        elif by == "network":
            answers.append((0, 0.0) if row.network is None else (int(np.argmax(row.network)), 1 - row.network[0]))
        else:
            assert fusion is not None
            if row.loss is None or row.network is None:
                answers.append((0, 0.0))
                continue
            p = fusion.probabilities(np.array([row.network if by == "both" else SILENT]), [row.loss])[0]
            answers.append((grade_of_probabilities(p), float(1 - p[0])))
    return answers


def phantom_figures(rows: list[Row], fusions: dict[str, OrdinalFusion]) -> dict[str, Any]:
    """Figures of each source on phantoms; intact vertebrae count as often as in patients."""
    times, result = intact_times(rows), {}
    for by in ("heights", "network", *fusions):
        given = said(rows, by, fusions.get(by))
        drawn = [(row, answer) for row, answer in zip(rows, given, strict=True) for _ in range(1 if row.grade else times)]
        result[by] = summarise([row.grade for row, _ in drawn], [a[0] for _, a in drawn], [a[1] for _, a in drawn],
                               [row.case for row, _ in drawn])
    return result | {"without_heights": sum(row.loss is None for row in rows), "intact_times": times}


def reliability(rows: list[Row], fusion: OrdinalFusion, by: str) -> list[dict[str, float]]:
    """Expected and found share of fractures in bins of the probability of grade >= 1."""
    given = np.array([score for _, score in said(rows, by, fusion)])
    weight = np.array([1 if row.grade else intact_times(rows) for row in rows])
    fractured = np.array([row.grade > 0 for row in rows])
    bins = []
    for low, high in ((0, 0.01), (0.01, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        inside = (given >= low) & (given < high)
        if inside.any():
            bins.append({"from": low, "n": int(inside.sum()), "expected": float(np.average(given[inside], weights=weight[inside])),
                         "found": float(np.average(fractured[inside], weights=weight[inside]))})
    return bins


def real_figures(work: Path, arm: str, parts: list[str], fusions: dict[str, OrdinalFusion]) -> dict[str, Any]:
    """Real scans by base alone, or each by the fold that left its patient out: what is called above grade 0, and the read vertebrae."""
    rows: list[Row] = []
    for name, (patient, _) in REAL.items():
        if (work / "cases" / f"real_{name}.json").is_file():
            part = "base" if parts == ["base"] else str(PATIENTS[patient][0])
            rows += rows_of(work, [f"real_{name}"], folder_of(work, arm, part) / "checkpoint_final.pth")
    measured = [row for row in rows if row.loss is not None]
    intact = [row for row in measured if row.case.removeprefix("real_") not in READ or (row.case == "real_verse008" and not row.grade)]
    result: dict[str, Any] = {"bodies": len(intact), "without_heights": len(rows) - len(measured)}
    for by in ("heights", "network", *fusions):
        given = said(intact, by, fusions.get(by))
        which = [f"{row.case[5:]} {row.level}: G{grade} ({score:.2f})" for row, (grade, score) in zip(intact, given, strict=True) if grade]
        result[by] = {"above_0": len(which), "which": which, "mean_score": float(np.mean([score for _, score in given]))}
    result["read"] = [{"case": row.case[5:], "level": row.level, "reader": row.grade, "loss": row.loss, "heights": row.implied,
                       "network": None if row.network is None else np.round(row.network, 3).tolist()}
                      | {by: said([row], by, fusion)[0] for by, fusion in fusions.items()}
                      for row in rows if row.case.removeprefix("real_") in READ]
    return result


def table(work: Path, arm: str) -> None:
    """WORK/trained/ARM/figures.json: all figures of the arm, of base and, where they are trained, of the folds."""
    cases = PreprocessedDataset(work / "cases").cases
    parts = {"base": ["base"]}
    if all((folder_of(work, arm, str(k)) / "checkpoint_final.pth").is_file() for k in (*range(FOLDS), "all")):
        parts["real"] = [str(k) for k in range(FOLDS)]
    result: dict[str, Any] = {}
    for name, which in parts.items():
        checkpoint = folder_of(work, arm, "base" if name == "base" else "all") / "checkpoint_final.pth"
        fitted_on, test = ([c for c in cases if c.startswith(f"{kind}_")] for kind in ("fit", "test"))
        rows = rows_of(work, fitted_on, checkpoint)
        fusions = {"both": fit(rows), "heights, fitted": fit(rows, silent=True)}
        tested = rows_of(work, test, checkpoint)
        result[name] = {"fusion": {by: fusion.to_json() for by, fusion in fusions.items()}, "fitted_on": len(rows),
                        "phantoms": phantom_figures(tested, fusions), "real": real_figures(work, arm, which, fusions),
                        "reliability": {by: reliability(tested, fusion, by) for by, fusion in fusions.items()}}
    write_json(folder_of(work, arm, "figures.json"), result)


def export(work: Path, arm: str, part: str = "all") -> None:
    """WORK/weights/grade.pth: the training on phantoms and all real scans, with the fusion that `table` fitted."""
    source = folder_of(work, arm, part) / "checkpoint_final.pth"
    fusion = read_json(folder_of(work, arm, "figures.json"), "figures")["real" if part == "all" else "base"]
    saved = Checkpoint.load(source, torch.device("cpu"))
    fitted = {"combination": fusion["fusion"]["both"], "fitted_on": f"{fusion['fitted_on']} vertebrae, predicted masks"}
    meta = saved.meta | {"fitted": fitted}
    target = source.with_name("checkpoint_weighed.pth")
    replace(saved, meta=meta).save(target)
    (work / "weights").mkdir(parents=True, exist_ok=True)
    logger.info("%s", write_shipped_stage(target, work / "weights" / "grade.pth"))
