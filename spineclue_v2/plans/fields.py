"""What the fields of a plan group are made of: type, range, unit and meaning, all beside the field.

A group is a frozen pydantic dataclass in its stage's `plan.py`; nothing about a field is said anywhere else:

    @dataclass(frozen=True, config=CONFIG)
    class MyNetwork:
        features: Annotated[tuple[Channels, ...], planned("channels per resolution", min_length=1)]
        sigma_mm: Annotated[Amount, planned("width of the heat map", "mm", gt=0)]

Types are strict: true is no number, 2.0 no whole number, and a text is not converted; a whole number will do as a `float`.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

LARGEST_NUMBER = 10 ** 9          # larger ones are mistakes of typing, whatever they count
LARGEST_BATCH = 1 << 16

# Numbers; `planned` narrows their range for one field.
Count = Annotated[int, Field(gt=0, le=LARGEST_NUMBER)]
Whole = Annotated[int, Field(ge=0, le=LARGEST_NUMBER)]
Amount = Annotated[float, Field(ge=0, le=LARGEST_NUMBER)]
Real = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Batch = Annotated[int, Field(gt=0, le=LARGEST_BATCH)]

# Parts of networks.
Edge = Annotated[int, Field(gt=0, le=1024)]
Channels = Annotated[int, Field(gt=0, le=8192)]
Blocks = Annotated[int, Field(gt=0, le=256)]
Box = tuple[Edge, Edge, Edge]

OPTIMIZERS = ("AdamW", "Adam", "SGD")


def planned(meaning: str, unit: str = "", *, old_names: Sequence[str] = (), **limits: Any) -> Any:
    """Meaning and unit of a field for `Annotated`; `old_names` are read too, with a warning; `limits` are pydantic's (gt, ge, lt, le,
    min_length)."""
    return Field(description=meaning, json_schema_extra={"unit": unit, "old_names": list(old_names)}, **limits)


@plain_dataclass(frozen=True)
class OneOf:
    """The values that a field may have, for `Annotated`."""

    values: tuple[int | str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return {**handler(schema), "enum": list(self.values)}

    def check(self, value: Any) -> Any:
        if value not in self.values:
            raise ValueError(f"known: {', '.join(map(str, self.values))}")
        return value


def one_of(*values: int | str) -> OneOf:
    """`Annotated[str, one_of("in", "out"), planned(...)]`."""
    return OneOf(values)


def _check_window(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] >= limits[1]:
        raise ValueError("expected the lower limit first, and another one above it")
    return limits


def check_order(limits: tuple[float, float]) -> tuple[float, float]:
    """ValueError where the second number is the smaller one."""
    if limits[0] > limits[1]:
        raise ValueError("expected the smaller number first")
    return limits


Window = Annotated[tuple[Real, Real], AfterValidator(_check_window)]
Interval = Annotated[tuple[Amount, Amount], AfterValidator(check_order)]


def check_multiples(name: str, size: Sequence[int], step: int, why: str) -> None:
    """ValueError where an edge of field `name` is no multiple of `step`."""
    if any(n % step for n in size):
        raise ValueError(f"{name} is {' x '.join(map(str, size))}; expected multiples of {step}, {why}")


def check_one_each(what: str, **fields: Sequence[Any]) -> None:
    """ValueError where two fields, which say something of every `what` in the same order, differ in length."""
    (first, a), (second, b) = fields.items()
    if len(a) != len(b):
        raise ValueError(f"{first} holds {len(a)} and {second} {len(b)} values; expected as many of each, one per {what}")


@dataclass(frozen=True, config=CONFIG)
class Run:
    """What every `run` group holds besides its own."""

    optimizer: Annotated[str, one_of(*OPTIMIZERS), planned(
        "of all phases; SGD has a momentum of 0.9, and Adam's weight decay is part of the gradient")] = field(
        default="AdamW", kw_only=True)
    extra: Annotated[dict[str, Any], planned(
        "free keys for trainers of your own: written, read again and looked at by nothing here")] = field(
        default_factory=dict, kw_only=True)


# Fields that training schedules share, with the same words everywhere.
Epochs = Annotated[Whole, planned("length of the training", "epochs")]
Iterations = Annotated[Count, planned("training steps per epoch", "steps")]
WeightDecay = Annotated[Amount, planned("weight decay of the optimiser")]


@dataclass(frozen=True, config=CONFIG)
class ScheduledRun(Run):
    """Of a stage that trains in one go. A group that says of what its batches are names `batch_size` again, which leaves its place."""

    batch_size: Annotated[Batch, planned("items per training step")]
    epochs: Epochs
    iterations_per_epoch: Iterations
    initial_lr: Annotated[Amount, planned("learning rate of the first step; it falls to 0 as (1 - t) ^ 0.9")]
    weight_decay: WeightDecay
