"""A small stage: the volume of each vertebra from its mask, with a tiny network.

The volume could be counted, so that everybody can see whether the stage works. What it says comes out in CASE.json below
`extra.volume`. Nothing heavy is imported here: every command looks at the stages that there are.
"""
from spineclue_v2 import Stage
from spineclue_v2.plans.data import Data

from .plan import VolumeNetworkPlan, VolumeRun

STAGE = Stage(
    name="volume", modality="CT", after="identify",   # which drops what is no vertebra: from there on their order stays
    data=Data, network=VolumeNetworkPlan, run=VolumeRun, headline=("network.crop_size", "run.batch_size"),
    plan="spineclue_extension.volume.plan:plan_volume",
    builder="spineclue_extension.volume.network:build_network",
    trainer="spineclue_extension.volume.trainer:VolumeTrainer",
    predictor="spineclue_extension.volume.predictor:predict")
