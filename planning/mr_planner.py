"""Planners of the MR stages (SSHSNet, arXiv 2203.12151): the default one follows data and budget, the other gives the paper's numbers."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spineclue_v2.errors import InputError
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME, Plans, StagePlan

from . import rules
from .mr_fingerprint import ORIENTATION
from .planner import overridden, plan_other_stages, stage_plan
from .rules import PlannedValue
from .sources import adamw

NAMING_MM = 288.0        # rows of a crop: a lumbar scan with its sacrum, from which levels are counted
THIN_MM = 3.0            # slices closer than this are averaged: sagittal structures change little from one to the next
POSITIONS = 4096         # of one slice, between which the spatial attention is computed
DISC_SIGNAL = 0.7        # of discs in training: about the spread between young and degenerated ones in T2
WHOLE = 16               # what the 2D branches pool


@dataclass(frozen=True)
class HardwareProfile:
    """A class of machine and what fits it."""

    name: str
    encoder: str
    decoder_channels: int
    crop_rows: int
    crop_columns: int
    patch: tuple[int, int, int]
    width: int
    blocks: tuple[int, int, int, int]
    groups: int
    head: str
    batch: int
    epochs: tuple[int, int]
    iterations: tuple[int, int]


HARDWARE_PROFILES = (
    HardwareProfile("laptop", "tu-test_resnet", 64, 96, 64, (8, 96, 96), 16, (1, 1, 1, 1), 1, "detail", 6, (40, 24), (30, 25)),
    HardwareProfile("medium", "resnet34", 128, 256, 160, (12, 160, 160), 32, (2, 2, 2, 2), 1, "detail", 8, (150, 80), (100, 100)),
    HardwareProfile("large", "se_resnext50_32x4d", 256, 512, 256, (12, 192, 192), 64, (3, 4, 6, 3), 32, "bilinear", 8, (300, 100),
                    (100, 100)),
)
LARGE_GB = 24.0


class SSHSNetPlanner:
    """Stages hybrid_2d and hybrid_3d: spacing from the data and the crop that the budget affords, networks from the class of machine."""

    modality = "MR"
    default_plans_name = DEFAULT_PLANS_NAME

    def __init__(self, raw_folder: str | Path, fingerprint: Mapping[str, Any], gpu_memory_target: float | None = None,
                 device: str = "cuda", plans_name: str | None = None):
        self.gb = rules.budget(device, gpu_memory_target)
        if "mr" not in fingerprint:
            raise InputError(f"{type(self).__name__} plans MR datasets and this fingerprint is of a CT one; fingerprint it again with "
                             f"spineclue_plan_and_preprocess -pl {type(self).__name__}.")
        self.raw_folder, self.fingerprint, self.device = Path(raw_folder), dict(fingerprint), device
        self.facts: dict[str, Any] = self.fingerprint["mr"]
        self.plans_name = plans_name or self.default_plans_name
        self.profile = HARDWARE_PROFILES[0] if device != "cuda" else HARDWARE_PROFILES[2 if self.gb >= LARGE_GB else 1]

    def plan(self) -> Plans:
        """Both stages; they share one preprocessed folder."""
        stages = {"hybrid_2d": self.hybrid_2d(), "hybrid_3d": self.hybrid_3d()}
        stages |= plan_other_stages(self, "MR", stages)
        budget = {"gpu_memory_target_gb": self.gb, "device": self.device, "machine_class": self.profile.name,
                  "rule": f"laptop without a GPU, medium with one, large from {LARGE_GB:g} GB"}
        return Plans(self.plans_name, type(self).__name__, self.fingerprint["dataset_name"], self.fingerprint["dataset_hash"],
                     budget, stages)

    def data(self) -> dict[str, PlannedValue]:
        """Network space: the dataset's own slices, in-plane spacing as fine as data and budget allow."""
        facts, rows = self.facts, self.profile.crop_rows * self.factor
        wanted = min(NAMING_MM, facts["fov_mm_p95"][0])
        plane = round(max(facts["in_plane_mm_p50"], wanted / rows), 3)
        thick = round(max(facts["slice_mm_p50"], THIN_MM), 3)
        names = list(facts["structures"])
        return {"spacing_mm": PlannedValue((thick, plane, plane),
                                     f"slices as they are (at least {THIN_MM:g} mm: closer ones are averaged); in plane the median, "
                                     f"coarser where the affordable crop would show less than {NAMING_MM:g} mm of spine",
                                     {k: facts[k] for k in ("slice_mm_p50", "in_plane_mm_p50", "fov_mm_p95")} | {"crop_rows_voxels": rows}),
                "orientation": PlannedValue(ORIENTATION, "sagittal: slices to the left, rows to the feet, columns to the back", {}),
                "percentiles": PlannedValue((0.5, 99.5), "of the non-zero voxels: clips vessels and coil hot spots", {}),
                "classes": PlannedValue(tuple(names), "structures that the labels hold, matched by name: bodies from below, then discs",
                                        {}),
                "label_values": PlannedValue(tuple(s["value"] for s in facts["structures"].values()), "the dataset's own values", {})}

    @property
    def factor(self) -> int:
        return 2

    def hybrid_2d(self) -> StagePlan:
        profile = self.profile
        crop = (profile.crop_rows, profile.crop_columns)
        network = {"encoder": self.of_class(profile.encoder, "SE-ResNeXt50 in the paper"),
                   "decoder_channels": self.of_class(profile.decoder_channels, "256 in the paper"),
                   "atrous_rates": PlannedValue(tuple(max(1, round(k * min(crop) / WHOLE / 4)) for k in (1, 2, 3)),
                                          "quarter, half and three quarters of the coarsest grid's smaller side", {"crop": crop}),
                   "head": self.of_class(profile.head, "bilinear in the paper; a full-resolution layer where pixels are coarse"),
                   "in_plane_factor": PlannedValue(self.factor, "2D sees twice as far as 3D at the same cost, as in the paper", {}),
                   "crop_size": self.of_class(crop, "512 x 256 in the paper"), "dropout": self.dropout()}
        run = {"batch_size": self.of_class(profile.batch, "8 in the paper"),
               "soft_labels": PlannedValue(False, "labels, as in the paper; shares outline discs better in 2D alone, but 3D on top of them "
                                      "came out worse", {}),
               "unlabelled_batch_size": PlannedValue(profile.batch if self.facts["num_unlabelled"] else 0,
                                               "as many as labelled ones in each of two batches; none without imagesUl",
                                               {"num_unlabelled": self.facts["num_unlabelled"]}),
               **self.schedule(0), "cps_weight": PlannedValue(1.0, "the paper's", {}),
               "cps_ramp_epochs": PlannedValue(max(1, round(0.3 * profile.epochs[0])), "the paper has none over 1000 epochs; a short "
                                         "training should not begin by learning noise", {"epochs": profile.epochs[0]}),
               "cutmix_boxes": PlannedValue(3, "the paper's", {}), "cutmix_area": PlannedValue((0.25, 0.5), "the paper's", {}),
               **self.augmentation(), **self.inference(16)}
        return stage_plan("hybrid_2d", self.data(), network, run)

    def hybrid_3d(self) -> StagePlan:
        profile, branches = self.profile, self.hybrid_2d().network
        region = tuple(n * branches.in_plane_factor for n in branches.crop_size)
        slices = int(min(profile.patch[0], max(1, round(self.facts["slices_p50"]))))
        patch = (slices, *(min(n, r) for n, r in zip(profile.patch[1:], region, strict=True)))
        step = 4 * branches.in_plane_factor
        context = tuple((r - n) // 2 // step * step for r, n in zip(region, patch[1:], strict=True))
        grid = (patch[1] // 4) * (patch[2] // 4)
        stride = next(s for s in (1, 2, 4, 8, 16) if grid / s ** 2 <= POSITIONS)
        network = {"patch_size": PlannedValue(patch, "what this class of machine serves, at most the median number of slices; "
                                        "12 x 192 x 192 in the paper", {"class": profile.name, "slices_p50": self.facts["slices_p50"]}),
                   "context": PlannedValue(context, "the 2D branches see as much around a patch as they were trained on", {"crop": region}),
                   "width": self.of_class(profile.width, "64 in the paper"),
                   "blocks": self.of_class(profile.blocks, "(3, 4, 6, 3) in the paper"),
                   "groups": self.of_class(profile.groups, "32 in the paper"),
                   "decoder_channels": self.of_class(profile.decoder_channels, "256 in the paper"),
                   "atrous_rates": PlannedValue(tuple(max(1, round(k * min(patch[1:]) / WHOLE / 4)) for k in (1, 2, 3)),
                                          "quarter, half and three quarters of the coarsest grid's smaller side", {"patch": patch}),
                   "dropout": self.dropout(),
                   "head": self.of_class(profile.head, "bilinear in the paper"),
                   "use_2d": PlannedValue(True, "False: 3D alone, for comparison", {}),
                   "residual": PlannedValue(profile.name != "large", "a short training starts from the 2D answer; the paper's is long", {}),
                   "attention": PlannedValue(True, "False: features are concatenated and fused, for comparison", {}),
                   "attention_channels": PlannedValue(max(8, profile.decoder_channels // 4), "a quarter of the features", {}),
                   "attention_stride": PlannedValue(stride, f"the finest grid with at most {POSITIONS} positions a slice",
                                                    {"positions": grid})}
        run = {"batch_size": PlannedValue(4 if profile.name == "large" else 2, "patches of one volume per step; 4 in the paper", {}),
               **self.schedule(1), "class_centred_fraction": PlannedValue(1.0, "all on a random class: the paper's remedy for rare "
                                                                          "levels", {}),
               **self.augmentation(), **self.inference(2)}
        return stage_plan("hybrid_3d", self.data(), network, run)

    def schedule(self, index: int) -> dict[str, PlannedValue]:
        """Epochs and learning rate of the 2D (0) or 3D (1) stage."""
        epochs = self.profile.epochs[index]
        return {"epochs": self.of_class(epochs, ("1000", "150")[index] + " in the paper"),
                "iterations_per_epoch": self.of_class(self.profile.iterations[index]),
                "initial_lr": PlannedValue(3e-3 if self.profile.name == "laptop" else 1e-3, "the paper's 1e-3; more for a small network",
                                     {"class": self.profile.name}),
                "weight_decay": PlannedValue(1e-4, "decoupled", {}), "optimizer": adamw(),
                "lr_drop_epochs": PlannedValue((), "none: it falls to 0 over the training, almost in a line; the paper drops it twice", {})}

    def dropout(self) -> PlannedValue:
        return PlannedValue(0.5 if self.profile.name == "large" else 0.1, "0.5 in the paper; less for a short training",
                            {"class": self.profile.name})

    def augmentation(self) -> dict[str, PlannedValue]:
        """Loss of kinds and the range of shapes; both help where few spines are labelled."""
        return {"tissue_class_weight": PlannedValue(1.0, "bodies and discs are told apart before they are named; none in the paper", {}),
                "rotation_deg": PlannedValue(20.0, "sacra tilt, patients hardly; 45 in the paper", {}),
                "scaling": PlannedValue((0.7, 1.35), "field drawn into a crop: people differ by less, but size must not tell the level; "
                                        "0.8 "
                                  "to 1.2 in the paper", {}),
                "disc_signal": PlannedValue(DISC_SIGNAL, "z-scores: a nucleus is bright or dark by degeneration, of which few labelled "
                                            "spines "
                                      "show all; none in the paper", {})}

    def inference(self, batch: int) -> dict[str, PlannedValue]:
        return {"inference_batch": PlannedValue(batch, "windows at a time, without gradients", {}),
                "overlap": PlannedValue(0.25, "a quarter of a window: borders are seen twice", {})}

    def of_class(self, value: Any, note: str = "") -> PlannedValue:
        """A number that the class of machine decides."""
        return PlannedValue(value, "what this class of machine serves" + (f"; {note}" if note else ""), {"class": self.profile.name})


class SSHSNetPaperPlanner(SSHSNetPlanner):
    """The paper's numbers exactly; what it leaves open follows the default planner's largest class."""

    default_plans_name = "SSHSNetPaperPlans"

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.profile = HARDWARE_PROFILES[-1]

    def data(self) -> dict[str, PlannedValue]:
        return super().data() | {"spacing_mm": paper((4.4, 0.345, 0.345), "4.4 mm between slices, 0.345 mm in plane, twice that in 2D")}

    def hybrid_2d(self) -> StagePlan:
        network = {"encoder": paper("se_resnext50_32x4d", "trained from scratch here: no weights are downloaded"),
                   "decoder_channels": paper(256), "atrous_rates": paper((12, 24, 36)), "head": paper("bilinear"),
                   "crop_size": paper((512, 256), "256 x 512"), "dropout": paper(0.5)}
        run = {"batch_size": paper(8), "unlabelled_batch_size": paper(8, "two batches of 8"), "epochs": paper(1000),
               "soft_labels": paper(False, "labels"),
               "initial_lr": paper(1e-3), "optimizer": paper("Adam"), "lr_drop_epochs": paper((50, 400)), "cps_weight": paper(1.0),
               "cps_ramp_epochs": paper(0, "no ramp-up"),
               "cutmix_boxes": paper(3), "cutmix_area": paper((0.25, 0.5)), **self.papers_augmentation()}
        return overridden(super().hybrid_2d(), network=network, run=run)

    def hybrid_3d(self) -> StagePlan:
        network = {"patch_size": paper((12, 192, 192)), "width": paper(64, "SE-ResNeXt50 32x4d, in-plane kernels"),
                   "blocks": paper((3, 4, 6, 3)), "groups": paper(32), "decoder_channels": paper(256), "atrous_rates": paper((12, 24, 36)),
                   "dropout": paper(0.5), "head": paper("bilinear"), "residual": paper(False),
                   "context": PlannedValue((64, 64), "the paper says 'a larger region'; 320 x 320 voxels here", {})}
        run = {"batch_size": paper(4), "epochs": paper(150), "initial_lr": paper(1e-3), "optimizer": paper("Adam"),
               "lr_drop_epochs": paper((25, 100)),
               "class_centred_fraction": paper(1.0), **self.papers_augmentation()}
        return overridden(super().hybrid_3d(), network=network, run=run)

    def papers_augmentation(self) -> dict[str, PlannedValue]:
        return {"tissue_class_weight": paper(0.0, "classes only"), "rotation_deg": paper(45.0), "scaling": paper((0.8, 1.2)),
                "disc_signal": paper(0.0, "none")}


def paper(value: Any, what: str = "") -> PlannedValue:
    """A number of the paper's."""
    return PlannedValue(value, "SSHSNet, arXiv 2203.12151" + (f": {what}" if what else ""), {})
