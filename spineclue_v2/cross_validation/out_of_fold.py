"""Out-of-fold predictions: the validation cases of a fold through the networks of that same fold, stage after stage.

All stages share one split, so what fold k trained, in whatever stage, has not seen the validation cases of fold k (checked, by
patient, against the cases each checkpoint says it was trained on). What a stage found stays in its `fold_k/validation`, signed with the
weights and settings behind it; the next stage reads it there, and makes it anew where the signature is another one.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import anatomy
from ..anatomy.vertebra import Vertebra, vertebra_from_record, vertebra_record
from ..anatomy.vertebral_gaps import order_cranio_caudal
from ..dataset.preprocessed import PreprocessedDataset
from ..errors import InputError
from ..evaluation.instances import instance_map, match_true_names
from ..imageio.volume import ImageGrid, Volume, write_volume
from ..inference.model import Model, load_stand_in, stage_model
from ..plans.plans import DEFAULT_PLANS_NAME, Plans, StagePlan
from ..stages.base import Context, Findings, Options
from ..stages.identify.evidence import fold_variants
from ..stages.identify.fitting import fitted_without
from ..stages.plan_files import load_plans
from ..stages.registry import CORE_STAGES, pipeline_of, stage_folder_name, stage_of, train_command
from ..training.checkpoint import Checkpoint
from ..training.stage_model import CHECKPOINT_NAME, StageModel
from ..utilities import paths
from ..utilities.files import atomic_path, read_json, write_json

logger = logging.getLogger(__name__)

RECORD = sorted(field.name for field in dataclasses.fields(Vertebra))  # findings of a version that knows other fields are made again


class MissingStage(InputError):
    """An earlier stage has not been trained on this fold, so there is nothing to validate on."""


def classifier_stages() -> tuple[str, ...]:
    """The trained stages that may say something about the levels of given masks before identify names them."""
    before = list(takewhile(lambda stage: stage.name != "identify", pipeline_of("CT")))
    return tuple(stage.name for stage in before if stage.names_masks and stage.trainable)


def up_to(stage: str) -> tuple[str, ...]:
    """The stages a scan goes through until `stage`, that one included."""
    return CORE_STAGES[:CORE_STAGES.index(stage) + 1]


class OutOfFold:
    """What the stages found in the validation cases of one fold.

    Parameters: `dataset` full name; `fold` number; `cases` the fold's validation cases; `patients` case -> patient (may be empty);
    `trainers` {stage: trainer class} where it is not the default; `checkpoints` {stage: file name} where it is not
    checkpoint_final.pth.
    """

    def __init__(self, dataset: str, fold: int | str, cases: list[str], device: torch.device, plans_name: str = DEFAULT_PLANS_NAME,
                 patients: Mapping[str, str] | None = None, trainers: Mapping[str, str] | None = None,
                 checkpoints: Mapping[str, str] | None = None) -> None:
        self.dataset, self.fold, self.cases, self.device = dataset, fold, cases, device
        self.plans_name, self.patients, self.trainers, self.checkpoints = plans_name, patients or {}, trainers or {}, checkpoints or {}
        self._models: dict[str, StageModel] = {}
        self._classifiers: dict[str, StageModel | None] = {}
        self._signatures: dict[str, str] = {}
        self._plans: dict[str, Plans] = {}
        self._data: dict[str, PreprocessedDataset] = {}

    # ---- where things lie ------------------------------------------------------------------------------------------
    def stage_folder(self, stage: str) -> Path:
        return paths.results_folder() / self.dataset / stage_folder_name(stage, self.plans_name, self.trainers.get(stage))

    def folder(self, stage: str) -> Path:
        """Where the stage's findings lie: `.../fold_k/validation`."""
        return self.stage_folder(stage) / f"fold_{self.fold}" / "validation"

    def checkpoint_file(self, stage: str) -> Path:
        return self.stage_folder(stage) / f"fold_{self.fold}" / self.checkpoints.get(stage, CHECKPOINT_NAME)

    def require(self, stage: str) -> None:
        """MissingStage unless every stage before `stage` has finished this fold."""
        for earlier in up_to(stage)[:-1]:
            if not self.checkpoint_file(earlier).exists():
                raise MissingStage(f"Stage {stage} is validated on what {earlier} found in the same cases, but fold {self.fold} of "
                                   f"{earlier} is not trained; run {self._command(earlier)}, then {self._command(stage, '--val')}.")

    def stages_up_to(self, stage: str) -> tuple[str, ...]:
        """`up_to`, with stage centres where this fold has trained it."""
        names = up_to(stage)
        return ("localize", "centres", *names[1:]) if len(names) > 1 and self.checkpoint_file("centres").exists() else names

    def _command(self, stage: str, *flags: str) -> str:
        return train_command(self.dataset, stage, self.fold, self.plans_name, self.trainers.get(stage), *flags)

    def check_unseen(self, stage: str) -> None:
        """InputError when a stage before `stage` was trained on a patient of the validation cases."""
        for earlier in self.stages_up_to(stage)[:-1]:
            self._check_unseen(earlier, Checkpoint.load(self.checkpoint_file(earlier)))

    def plan(self, stage: str) -> StagePlan:
        if stage not in self._plans:
            self._plans[stage] = load_plans(self.stage_folder(stage) / "plans.json")
        return self._plans[stage].stage(stage)

    def data(self, stage: str) -> PreprocessedDataset:
        if stage not in self._data:
            self._data[stage] = PreprocessedDataset(paths.preprocessed_folder() / self.dataset / self.plan(stage).data_fingerprint)
        return self._data[stage]

    def volume(self, stage: str, case: str) -> Volume:
        data = self.data(stage)
        return Volume(data.image(case)[:], ImageGrid.from_json(data.properties(case)["geometry"]))

    def labels(self, case: str) -> np.ndarray:
        """True VerSe values on the grid of segment and identify, vertebrae only."""
        labels = self.data("segment").labels(case)[:]
        return np.where(np.isin(labels, anatomy.VERTEBRA_LABELS), labels, 0)

    def annotated(self, case: str) -> np.ndarray:
        """Bool on the same grid: False where the label is nnU-Net's "ignore"."""
        annotated: np.ndarray = self.data("segment").labels(case)[:] != anatomy.IGNORED
        return annotated

    def classifier(self, stage: str) -> StageModel | None:
        """Network of an optional classifier: this fold's own where it was trained, else what the package stands in with, or None."""
        if stage not in self._classifiers:
            trained = self.checkpoint_file(stage).exists()
            self._classifiers[stage] = self.model(stage) if trained else load_stand_in(stage, self.device)
        return self._classifiers[stage]

    def naming_model(self, case: str) -> Model:
        """What names the masks of `case`: identify as it may be judged on this case, and the classifiers of this fold."""
        identify = self.model("identify")
        fitted, extra = fitted_without(case, identify.fitted[0], identify.extra[0])
        stages, plans = {"identify": dataclasses.replace(identify, fitted=[fitted], extra=[extra])}, self._plans["identify"]
        for stage in classifier_stages():
            if (found := self.classifier(stage)) is not None:
                stages[stage] = found
        own = {stage: self.plan(stage) for stage in stages if self.checkpoint_file(stage).exists()}
        return Model(dataclasses.replace(plans, stages=plans.stages | own), self.device, stages)

    def evidence(self, case: str) -> dict[str, np.ndarray]:
        """(n, 25) log-probabilities of each classifier but shape, one row per segmented vertebra; an L6 counts as L5."""
        vertebrae = tuple(self.segmented(case))
        model = self.naming_model(case)
        findings = Findings(self.volume("segment", case), vertebrae)
        identify = model.plans.stage("identify")  # a classifier that weighs nothing yet is asked too: what it is worth is looked for
        asked = dataclasses.replace(identify, run=dataclasses.replace(identify.run, classifier_weights={}))
        context = Context(dataclasses.replace(model.plans, stages=model.plans.stages | {"identify": asked}), self.device, Options(),
                          model.stages)
        for stage in classifier_stages():
            if vertebrae and stage in model.stages:
                findings = stage_of(stage).predict(findings, model.stages[stage], context)
        return {name: fold_variants(found) for name, found in findings.evidence.items()}

    # ---- the networks ----------------------------------------------------------------------------------------------
    def model(self, stage: str) -> StageModel:
        """The one network of this fold; InputError when it was trained on a patient of the validation cases."""
        if stage not in self._models:
            file = self.checkpoint_file(stage)
            checkpoint = Checkpoint.load(file, self.device)
            plan = self.plan(stage)
            self._check_unseen(stage, checkpoint)
            self._models[stage] = stage_model(stage, [checkpoint], [file], self._plans[stage], self.device)
            digest = hashlib.sha256()
            for name, tensor in sorted(checkpoint.network.items()):
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
            settings = dataclasses.asdict(plan.run) | {"fitted": checkpoint.meta.get("fitted", {}).get("temperature")}
            if stage == "identify":  # its rows are those before fusion and decoder: what is chosen for these leaves them valid
                settings = {key: settings[key] for key in ("mc_samples", "fitted")}
            digest.update(json.dumps([RECORD, settings, self._plans[stage].stage(stage).model_fingerprint], sort_keys=True).encode())
            self._signatures[stage] = digest.hexdigest()[:16]
        return self._models[stage]

    def _check_unseen(self, stage: str, checkpoint: Checkpoint) -> None:
        if "train_cases" not in checkpoint.meta:
            raise InputError(f"{self.checkpoint_file(stage)} does not say which cases it was trained on, as models that were passed on do "
                             f"not, so none can be said to be unseen; {self._command(stage)} trains one that does.")
        owner = {case: self.patients.get(case, case) for case in [*self.cases, *checkpoint.meta.get("train_cases", [])]}
        seen = {owner[case] for case in checkpoint.meta.get("train_cases", [])}
        shared = sorted(case for case in self.cases if owner[case] in seen)
        if shared:
            raise InputError(f"{self.checkpoint_file(stage)} was trained on '{shared[0]}' ({len(shared)} of {len(self.cases)} validation "
                             f"cases of fold {self.fold}): the split has changed since. Train fold {self.fold} of {stage} again.")

    def signature(self, stage: str) -> str:
        """Digest of the weights and settings of `stage` and of all stages before it."""
        parts = []
        for name in self.stages_up_to(stage):
            self.model(name)
            parts.append(self._signatures[name])
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    # ---- what the stages found -------------------------------------------------------------------------------------
    def located(self, case: str) -> list[Vertebra]:
        """Stage 1: vertebrae with box centres."""
        known = self._known("localize", case)
        if known is None:
            from ..stages.localize.predictor import locate

            found = locate(self.volume("localize", case), self.model("localize").networks, self.plan("localize"), self.device)
            self._keep("localize", case, found)
            return found
        return known

    def followed(self, case: str) -> list[Vertebra]:
        """What was located, as this fold's heat maps of body centres have it; unchanged where it has none."""
        located = self.located(case)
        if "centres" not in self.stages_up_to("segment"):
            return located
        from ..stages.centres.predictor import follow_row

        return follow_row(self.volume("centres", case), located, self.model("centres").networks, self.plan("centres"), self.device)

    def segmented(self, case: str) -> list[Vertebra]:
        """Stage 2: vertebrae with masks, in cranio-caudal order."""
        known = self._known("segment", case)
        if known is None:
            from ..stages.segment.spine import segment_located

            located, volume = self.followed(case), self.volume("segment", case)
            scan = ImageGrid.from_json(self.data("segment").properties(case)["source_geometry"])
            found = order_cranio_caudal(segment_located(volume, located, self.model("segment").networks, self.plan("segment"),
                                                        self.device, scan))
            write_volume(Volume(instance_map(found, volume.array.shape), volume.geometry), self.folder("segment") / f"{case}.nii.gz")
            self._keep("segment", case, found)
            return found
        return known

    def rows(self, case: str) -> dict[str, np.ndarray]:
        """Stage 3 before fusion and decoder: `probabilities` (n, 24) Monte-Carlo means, `entropy` (n,), `centres` (n, 3) LPS mm, `names`
        (n,) true names ('' = no true vertebra). Cranio-caudal, one row per segmented vertebra."""
        signature, file = self.signature("identify"), self.folder("identify") / f"{case}.npz"
        if file.is_file():
            try:
                with np.load(file, allow_pickle=False) as content:
                    if str(content["signature"]) == signature:
                        return {key: content[key] for key in ("probabilities", "entropy", "centres", "names")}
            except (OSError, ValueError, KeyError, EOFError):
                logger.info("%s is made again.", file)
        from ..stages.identify.predictor import shape_rows

        found, model = self.segmented(case), self.model("identify")
        fitted, _ = fitted_without(case, model.fitted[0], model.extra[0])
        mean = entropy = np.zeros((0,), dtype=np.float32)
        if found:
            mean, entropy = shape_rows(found, model.networks[0], fitted, self.plan("identify"), self.device)
        rows = {"probabilities": mean.reshape(-1, anatomy.NUM_LEVELS), "entropy": entropy,
                "centres": np.array([v.body_centre for v in found], dtype=float).reshape(-1, 3),
                "names": np.array([name or "" for name in match_true_names(found, self.labels(case))], dtype="U4")}
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            arrays: dict[str, Any] = {"signature": np.array(signature)} | rows  # numpy's stub takes `**` for its own options too
            np.savez_compressed(stream, **arrays)
        return rows

    # ---- keeping them ----------------------------------------------------------------------------------------------
    def _known(self, stage: str, case: str) -> list[Vertebra] | None:
        folder = self.folder(stage)
        if not (folder / f"{case}.json").is_file() or (stage == "segment" and not (folder / f"{case}.npz").is_file()):
            return None
        content = read_json(folder / f"{case}.json", "validation result")
        if not isinstance(content, dict) or content.get("signature") != self.signature(stage):
            return None
        masks: list[np.ndarray | None] = [None] * len(content["vertebrae"])
        if stage == "segment":
            with np.load(folder / f"{case}.npz", allow_pickle=False) as packed:
                masks = [np.unpackbits(packed[f"mask_{i}"], count=int(np.prod(v["mask_shape"]))).reshape(v["mask_shape"]).astype(bool)
                         for i, v in enumerate(content["vertebrae"])]
        return [_restore(record, mask) for record, mask in zip(content["vertebrae"], masks, strict=True)]

    def _keep(self, stage: str, case: str, found: list[Vertebra]) -> None:
        """Masks first, then the JSON that vouches for them."""
        folder = self.folder(stage)
        (folder / f"{case}.json").unlink(missing_ok=True)
        if stage == "segment":
            arrays: dict[str, Any] = {f"mask_{i}": np.packbits(v.known_mask) for i, v in enumerate(found)}
            with atomic_path(folder / f"{case}.npz") as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)
        write_json(folder / f"{case}.json", {"signature": self.signature(stage), "vertebrae": [
            vertebra_record(v) | ({} if v.mask is None else {"mask_shape": list(v.mask.shape)}) for v in found]})


def _restore(record: dict[str, Any], mask: np.ndarray | None) -> Vertebra:
    return vertebra_from_record({name: value for name, value in record.items() if name != "mask_shape"}, mask=mask)
