"""Reading plan files: types, ranges, and a sentence for what does not fit."""
from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import typing
from typing import Any

from ..errors import InputError

OLD_KEYS = {"min_samples_share": "min_samples_fraction", "decoder_prices": "decoder_penalties", "witness_weights": "classifier_weights",
            "label_shares": "soft_labels", "kind_weight": "tissue_class_weight", "class_placed_share": "class_centred_fraction"}


def parse_group(kind: type, groups: Any, stage: str, group: str, reasons: dict[str, dict[str, Any]], source: str) -> Any:
    """Group `group` of a stage as `kind`, its dataclass; rules and their inputs are added to `reasons`. InputError names the place."""
    place = f"{source}: stages.{stage}.{group}"
    entries = groups.get(group) if isinstance(groups, dict) else None
    if not isinstance(entries, dict):
        raise InputError(f"{place} is missing.")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, entry in entries.items():
        key = OLD_KEYS.get(key, key)
        if key not in hints:
            raise InputError(f"{place}: unknown key '{key}'{nearest(key, hints)}.")
        value = entry["value"] if isinstance(entry, dict) and "value" in entry else entry
        values[key] = _typed(value, hints[key], f"{place}.{key}")
        _check_range(values[key], key, f"{place}.{key}")
        if key in getattr(kind, "KNOWN_KEYS", {}):
            for name in values[key]:
                if name not in kind.KNOWN_KEYS[key]:
                    raise InputError(f"{place}.{key}: unknown key '{name}'{nearest(name, kind.KNOWN_KEYS[key])}.")
        if isinstance(entry, dict) and "value" in entry:
            reasons[f"{group}.{key}"] = {k: v for k, v in entry.items() if k != "value"}
    missing = [f.name for f in dataclasses.fields(kind)
               if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise InputError(f"{place}: missing {', '.join(missing)}; plan again with spineclue_plan_experiment.")
    return kind(**values)


def _typed(value: Any, hint: Any, place: str) -> Any:
    """`value` as the annotated type; lists become tuples; anything that does not fit is an InputError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = InputError(f"{place} is {reprlib.repr(value)}; expected {getattr(hint, '__name__', None) or hint}.")
    if hint is Any:
        return _plain(value, wrong)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise wrong
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(v, arguments[0], place) for v in value)
        if len(value) != len(arguments):
            raise wrong
        return tuple(_typed(v, a, place) for v, a in zip(value, arguments, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong
        return {str(k): _typed(v, arguments[1], place) for k, v in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise wrong
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise wrong


def _plain(value: Any, wrong: InputError) -> Any:
    """Nested objects and lists of numbers, lists as tuples; anything else is `wrong`."""
    if isinstance(value, dict):
        return {str(k): _plain(v, wrong) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(v, wrong) for v in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong
    return float(value)


MAX_NUMBER = 10 ** 9

POSITIVE = {"spacing_mm", "slice_size", "crop_size", "features", "blocks", "width", "stem_stride", "pool_grid", "hidden", "projection_dim",
            "heatmap_sigma_mm", "batch_size", "inference_batch", "iterations_per_epoch", "slices_per_plane", "eps_mm", "axis_scale",
            "temperature", "mc_samples", "neighbours", "spacing_between_mm"}

MAY_BE_EMPTY = {"lr_drop_epochs"}

ANY_SIGN = {"hu_min", "hu_max", "windows_hu", "decoder_penalties", "classifier_weights"}

LARGEST = {"crop_size": 1024, "slice_size": 4096, "features": 8192, "blocks": 256, "width": 4096, "pool_grid": 1024, "hidden": 1 << 16,
           "projection_dim": 1 << 16, "spacing_mm": 50, "batch_size": 1 << 16, "inference_batch": 1 << 16, "slices_per_plane": 1 << 16,
           "mc_samples": 1 << 16, "dropout": 1, "nms_iou": 1, "min_score": 1, "overlap_dice": 1, "min_samples_fraction": 1}

SIDES = {"L": "L", "R": "L", "P": "P", "A": "P", "S": "S", "I": "S"}

CHOICES = {"contrastive_loss": ("in", "out"), "depth": (18, 34, 50, 101), "scale": ("n", "s", "m", "l", "x")}


def _check_range(value: Any, key: str, place: str) -> None:
    """Refuse numbers that no stage could work with: not finite, negative or zero where it makes no sense, absurdly large."""
    if key in CHOICES and value not in CHOICES[key]:
        raise InputError(f"{place} is {value!r}; known: {', '.join(map(str, CHOICES[key]))}.")
    if key == "orientation" and sorted(SIDES.get(letter, "") for letter in value) != ["L", "P", "S"]:
        raise InputError(f"{place} is {value!r}; expected one letter for each axis, such as LPS.")
    if key == "neighbours" and value % 2 == 0:
        raise InputError(f"{place} is {value}; expected an odd number: the vertebra itself and as many on either side.")
    if isinstance(value, tuple) and not value and key not in MAY_BE_EMPTY:
        raise InputError(f"{place} is empty; expected at least one value.")
    for number in _numbers(value):
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"{place} holds {number}, which is not finite.")
        if key not in ANY_SIGN and (number < 0 or (number == 0 and key in POSITIVE)):
            raise InputError(f"{place} holds {number}; expected a number {'above' if key in POSITIVE else 'of at least'} 0.")
        if abs(number) > LARGEST.get(key, MAX_NUMBER):
            raise InputError(f"{place} holds a number above {LARGEST.get(key, MAX_NUMBER)}, the largest that is accepted.")
    if key == "windows_hu" and any(low >= high for low, high in value):
        raise InputError(f"{place} holds {value!r}; each window needs its lower limit first.")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return [number for part in value for number in _numbers(part)]
    return [] if isinstance(value, str | bool) else [value]


def nearest(word: str, known: Any) -> str:
    """What a mistyped word may have meant, as the end of a sentence."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"
