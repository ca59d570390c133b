"""Self-training: unlabelled scans that the model labels in agreement with itself become further training cases (Lee 2013; Xie et al. 2020).

Fold by fold: the fold's model predicts the scans of imagesUl; what is anchored and self-consistent (`agreement`) is kept; every stage is
trained again from the model's weights, with the kept scans in a part of the batches of their own; both models predict the cases that the
fold left out. All folds together say whether it helped (`self_train_proof`). The new weights lie under a plan name of their own, so the old
ones are never touched. Every step leaves files and is not repeated when they are there.
"""
from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..anatomy import NAME_OF_LABEL
from ..dataset.preprocessed import PreprocessedDataset
from ..dataset.raw import RawDataset
from ..dataset.splits import fold_cases, load_splits, make_splits, parse_fold
from ..errors import InputError
from ..inference.cases import Case
from ..inference.model import Model, load_shipped, load_trained, trained_files
from ..inference.pipeline import Options
from ..inference.predict_folder import predict
from ..plans.plans import DEFAULT_PLANS_NAME, Plans, StagePlan
from ..preprocessing.ct import preprocess_case
from ..preprocessing.files import prepare_folder
from ..stages.plan_files import load_plans
from ..stages.registry import modality_of, stage_folder_name
from ..training.added_cases import AddedCases
from ..training.checkpoint import Checkpoint
from ..training.stage_model import CHECKPOINT_NAME
from ..utilities import paths
from ..utilities.files import atomic_path, read_json, write_json
from .agreement import Judged, describe, judge_scan
from .run_training import train
from .self_train_proof import Proof, compare, predict_left_out
from .validation import open_fold

logger = logging.getLogger(__name__)

LEARNING = ("localize", "centres", "segment", "appearance", "ribs", "identify")
"""Stages that are trained again, in this order; others of the model go along as they are."""
RATE = 0.1               # of a new network's rate, unless the plan is one for fine-tuning: the weights are there, and only to be improved
RATES = ("initial_lr", "contrastive_lr", "classifier_lr")
SUFFIX = "SelfTrained"
TRAINED, SHIPPED = "trained", "shipped"


@dataclass(frozen=True)
class Fold:
    """One fold: cases left out, and the unlabelled scans that may be learned from (no patient of those left out is among them)."""

    number: int | str
    left_out: list[str]
    unlabelled: dict[str, Path]


@dataclass(frozen=True)
class Outline:
    """What is to be done, checked; nothing is written yet. `teacher`: 'trained' or 'shipped'."""

    raw: RawDataset
    plans: Plans
    teacher: str
    folds: list[Fold]
    share: float
    device: torch.device

    @property
    def new_name(self) -> str:
        """Plan name of the new weights."""
        return self.plans.plans_name + SUFFIX

    @property
    def work(self) -> Path:
        """Folder of predictions, selections and the report."""
        return paths.results_folder() / self.raw.name / "self_training" / self.plans.plans_name

    @property
    def base(self) -> Path:
        """The dataset's preprocessed folder."""
        return paths.preprocessed_folder() / self.raw.name

    @property
    def anew(self) -> str:
        """The remedy where what is there does not belong to what is asked for."""
        return f"to begin anew, move {self.work} and the folders *__{self.new_name}__* in {self.work.parents[1]} away"

    def place(self, fold: Fold) -> Path:
        return self.work / f"fold_{fold.number}"

    def teacher_files(self, fold: Fold) -> dict[str, Path]:
        """{stage: checkpoint} of the model that labels the scans."""
        if self.teacher == SHIPPED:
            found = {stage: paths.weights_folder() / f"{stage}.pth" for stage in LEARNING if stage in self.plans.stages}
            return {stage: file for stage, file in found.items() if file.is_file()}
        files = trained_files(paths.results_folder() / self.raw.name, [fold.number], self.plans.plans_name)
        return {stage: found[0] for stage, found in files.items()}

    def old_model(self, fold: Fold) -> Model:
        if self.teacher == SHIPPED:
            return load_shipped(self.device)
        return load_trained(paths.results_folder() / self.raw.name, [fold.number], self.device, self.plans.plans_name)

    def new_model(self, fold: Fold) -> Model:
        return load_trained(paths.results_folder() / self.raw.name, [fold.number], self.device, self.new_name)

    def describe(self) -> str:
        """What would be done, for --dry-run."""
        model = "the package's weights" if self.teacher == SHIPPED else f"the weights trained under {self.plans.plans_name}"
        lines = [f"{self.raw.name}: {len(self.raw.unlabelled)} unlabelled scans, labelled by {model}."]
        for fold in self.folds:
            there = sum((self.place(fold) / "predictions" / f"{case}.json").is_file() for case in fold.unlabelled)
            lines.append(f"Fold {fold.number}: predict {len(fold.unlabelled)} scans and two parts of each ({there} are predicted), train "
                         f"{', '.join(stage for stage in LEARNING if stage in self.teacher_files(fold))} again with those that agree, "
                         f"compare on {len(fold.left_out)} cases left out.")
        return "\n".join([*lines, f"New weights would be called {self.new_name}; those there are stay as they are.",
                          f"Working folder: {self.work}"])


def outline(dataset: str | int, plans_name: str = DEFAULT_PLANS_NAME, folds: Sequence[int | str] | None = None,
            teacher: str | None = None, share: float = 0.5, device: torch.device | None = None) -> Outline:
    """Check what self-training needs. `folds` None: all that the trained model finished, or all of the split. `teacher` None: the trained
    model where there is one, else the package's. InputError says what is missing."""
    if not 0 < share < 1:
        raise InputError(f"--share is {share:g}; expected a number between 0 and 1.")
    raw = RawDataset(paths.raw_folder() / paths.dataset_name(dataset, paths.raw_folder()))
    if not raw.unlabelled:
        raise InputError(f"{raw.folder} has no unlabelled scan; put scans as CASE_0000{raw.file_ending} into its imagesUl.")
    base = paths.preprocessed_folder() / raw.name
    plans = load_plans(base / f"{plans_name}.json")
    if modality_of(plans.stages) != "CT":
        raise InputError(f"{raw.name} is MR, whose trainings learn from imagesUl by themselves; spineclue_self_train is for CT.")
    finished = sorted(file.parent.name[5:] for file in (paths.results_folder() / raw.name).glob(
        f"{stage_folder_name('identify', plans_name)}/fold_*/{CHECKPOINT_NAME}"))
    teacher = teacher or (TRAINED if finished else SHIPPED)
    if teacher == SHIPPED and plans.budget.get("from") != SHIPPED:
        raise InputError(f"{plans_name} of {raw.name} is not made for the package's weights; plan with spineclue_plan_and_preprocess -d "
                         f"{int(raw.name[7:10])} --from shipped, or train a fold first.")
    cases = PreprocessedDataset(base / plans.stage("segment").data_fingerprint).cases
    drawn = (base / "splits_final.json").is_file()
    splits = load_splits(base, cases, raw.patients) if drawn else make_splits(cases, raw.patients)
    if folds is None:
        folds = [number for number in finished if number != "all"] if teacher == TRAINED else list(range(len(splits)))
    where = device or torch.device("cpu")
    found = []
    for number in dict.fromkeys(map(parse_fold, folds)):
        if teacher == TRAINED:
            opened = open_fold(raw.name, number, where, plans_name)
            opened.require("identify")
            opened.check_unseen("identify")
        found.append(_fold(raw, number, *fold_cases(splits, number, cases, raw.patients)))
    if not found:
        raise InputError(f"{raw.name} has no numbered fold that is trained with {plans_name}; train one with spineclue_train "
                         f"{int(raw.name[7:10])} all 0, or start from the package's weights with -teacher shipped.")
    result = Outline(raw, plans, teacher, found, share, where)
    for fold in found:
        result.teacher_files(fold)
    return result


def _fold(raw: RawDataset, number: int | str, training: list[str], left_out: list[str]) -> Fold:
    if set(training) & set(left_out):
        raise InputError(f"Fold {number} of {raw.name} leaves out no case that it does not train on, so that nothing could be proved; give "
                         "numbered folds of a dataset of two cases or more.")
    taken = {raw.patient_of(case) for case in left_out}
    free = {case: scan for case, scan in raw.unlabelled.items() if raw.patient_of(case) not in taken}
    if not free:
        raise InputError(f"All unlabelled scans of {raw.name} are of patients whom fold {number} leaves out; add scans of others to "
                         "imagesUl.")
    return Fold(number, left_out, free)


def self_train(plan: Outline, progress: bool = True) -> tuple[dict[str, list[Judged]], Proof | None]:
    """Do it; ({fold: what became of each unlabelled scan}, the proof, or None where no fold had a scan to learn from).

    `report.json` in the working folder says all of it.
    """
    judged = {}
    for fold in plan.folds:
        model = plan.old_model(fold)
        _check_teacher(plan, fold, model)
        judged[str(fold.number)] = select(plan, fold, model, progress)
        logger.info("Fold %s: %s.", fold.number, describe(judged[str(fold.number)]))
    folders = []
    for fold in plan.folds:
        kept = [entry.case for entry in judged[str(fold.number)] if entry.kept]
        if not kept:
            continue
        train_again(plan, fold, kept)
        old, new = plan.place(fold) / "left_out_old", plan.place(fold) / "left_out_new"
        predict_left_out(plan.raw, fold.left_out, plan.old_model(fold), old)
        predict_left_out(plan.raw, fold.left_out, plan.new_model(fold), new)
        folders.append((fold.left_out, old, new))
    proof = compare(plan.raw, folders) if folders else None
    write_json(plan.work / "report.json", {
        "dataset": plan.raw.name, "plans": plan.plans.plans_name, "new_plans": plan.new_name, "teacher": plan.teacher, "share": plan.share,
        "folds": {number: [entry.to_json() for entry in entries] for number, entries in judged.items()},
        "proof": None if proof is None else proof.to_json()})
    return judged, proof


def _check_teacher(plan: Outline, fold: Fold, model: Model) -> None:
    """Predictions of another model are not mixed with those of this one."""
    record = model.record["weights"]
    file = plan.place(fold) / "teacher.json"
    if not file.is_file():
        write_json(file, {"teacher": plan.teacher, "weights": record})
    elif read_json(file, "teacher")["weights"] != record:
        raise InputError(f"{plan.place(fold)} was made with other weights than those there are now; {plan.anew}.")


def select(plan: Outline, fold: Fold, model: Model, progress: bool = True) -> list[Judged]:
    """Predict the unlabelled scans and judge each prediction; `selection.json` keeps what was found."""
    place = plan.place(fold)
    predictions, cases = place / "predictions", [Case(case, scan) for case, scan in fold.unlabelled.items()]
    try:
        failed = predict(cases, predictions, model, Options(measures=False), continue_prediction=True, report=False, progress=progress)
    except InputError as error:     # of several scans a bad one fails alone
        if len(cases) > 1:
            raise
        failed = {cases[0].name: str(error)}
    result = []
    for case, scan in fold.unlabelled.items():
        file = place / "agreement" / f"{case}.json"
        if failed.get(case) is not None:
            result.append(Judged(case, False, str(failed[case])))
            continue
        if not file.is_file():
            write_json(file, judge_scan(case, scan, predictions, model).to_json())
        result.append(Judged(**read_json(file, "agreement")))
    write_json(place / "selection.json", {"weights": model.record["weights"], "scans": [entry.to_json() for entry in result]})
    return result


def train_again(plan: Outline, fold: Fold, kept: Sequence[str]) -> None:
    """Train every stage of the old model again, from its weights, with the kept scans; finished stages stay."""
    added = AddedCases(_preprocess(plan, fold, kept), tuple(kept), plan.share)
    file = plan.base / f"{plan.new_name}.json"
    if not file.is_file():      # one that is there may have been edited, as any plan
        continued_plan(plan.plans, plan.new_name).save(file)
    results, number = paths.results_folder() / plan.raw.name, f"fold_{fold.number}"
    for stage, weights in plan.teacher_files(fold).items():
        target = results / stage_folder_name(stage, plan.new_name)
        started, done = target / number / "checkpoint_latest.pth", target / number / CHECKPOINT_NAME
        if stage in LEARNING:
            for file in (started, done):
                _check_added(plan, file, added)
        if done.is_file() and not started.is_file():
            continue
        if stage in LEARNING:
            logger.info("Fold %s: stage %s is trained again with %d more scans.", fold.number, stage, len(kept))
            train(plan.raw.name, stage, fold.number, plans_name=plan.new_name, device=plan.device.type, pretrained_weights=str(weights),
                  resume=started.is_file(), validate=False, added=added)
            continue
        for source, name in ((weights.parents[1] / "plans.json", target / "plans.json"), (weights, done)):
            with atomic_path(name) as temporary:
                shutil.copyfile(source, temporary)


def _check_added(plan: Outline, file: Path, added: AddedCases) -> None:
    """InputError for a checkpoint that learned from other scans than those that are kept now."""
    if file.is_file() and Checkpoint.load(file).meta.get("added_cases") != added.to_json():
        raise InputError(f"{file} was trained with other unlabelled scans, or another --share, than now; {plan.anew}.")


def continued_plan(plans: Plans, name: str) -> Plans:
    """The plan under a new name, with rates for weights that are trained already."""
    factor = 1.0 if "from" in plans.budget else RATE

    def stage(old: StagePlan) -> StagePlan:
        rates = {rate: getattr(old.run, rate) * factor for rate in RATES if hasattr(old.run, rate)}
        why = f"{factor:g} of the rate in {plans.plans_name}: the training starts from its weights"
        rule = {f"run.{rate}": {"rule": why} for rate in rates}
        return dataclasses.replace(old, run=dataclasses.replace(old.run, **rates), reasons=old.reasons | rule)

    return dataclasses.replace(plans, plans_name=name, budget=plans.budget | {"from": plans.plans_name},
                               stages={key: stage(old) if key in LEARNING else old for key, old in plans.stages.items()})


def _preprocess(plan: Outline, fold: Fold, kept: Sequence[str]) -> Path:
    """Preprocess the kept scans with their predicted labels, in folders beside the dataset's own; the folder that holds them."""
    base = plan.base / f"self_training__{plan.plans.plans_name}__fold_{fold.number}"
    values = {value: value for value in (0, *NAME_OF_LABEL)}
    spaces = {plan.plans.stage(stage).data_fingerprint: plan.plans.stage(stage).data for stage in LEARNING if stage in plan.plans.stages}
    digests = {case: plan.raw.case_digest(case) for case in kept}
    for fingerprint, data in spaces.items():
        prepare_folder(base / fingerprint, list(kept), digests, clean=False)
        for case in kept:
            if not (base / fingerprint / f"{case}.json").is_file():
                preprocess_case(fold.unlabelled[case], plan.place(fold) / "predictions" / f"{case}.nii.gz", base / fingerprint, case, data,
                                values, digests[case])
    return base
