"""All scans of one patient numbered jointly: what one cannot tell another may, and where they contradict each other is said."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..anatomy import ANATOMICAL_ORDER
from ..errors import InputError
from ..export.renumbering import basis_of, with_numbering
from ..flags import Flag
from ..results import SpineResult
from ..stages.base import NumberingBasis
from ..stages.identify.constraints import Constraints
from ..stages.identify.decoder import Numbering
from ..stages.identify.numbering import decode, number_under
from .prior import SURE, row_of
from .renumber import change_cases
from .row_match import match_places, match_rows

FLOOR = 1e-12            # of the probability that one scan gives a joint numbering
MIXED = 0.95             # posterior of the joint numbering from which it is anchored
Key = tuple[str, int]    # a case and a detection of it


@dataclass(frozen=True)
class Joint:
    """A joint numbering.

    Attributes:
        levels: level of each matched detection, by case and position among the case's detections.
        posterior: of this joint numbering among those considered.
        groups: cases that could be matched with each other; a case alone is numbered by itself.
        probability: that each scan alone gives the joint numbering.
    """

    levels: Mapping[str, Mapping[int, str]]
    posterior: Mapping[str, float]
    groups: tuple[tuple[str, ...], ...]
    probability: Mapping[str, float]


def number_series(folder: str | Path, cases: list[str], scans: str | Path | None = None) -> dict[str, SpineResult | str]:
    """Number the `cases` of a prediction folder as scans of one patient and rewrite their files; see `change_cases`.

    Raises InputError where no two of them fit together, so that nothing is written.
    """
    from .stored_result import read_result

    results = {name: read_result(folder, name) for name in cases}
    joint = join(results)
    members = {name for group in joint.groups if len(group) > 1 for name in group}
    if not members:
        raise InputError(f"The {len(cases)} scans in {folder} do not fit together: they show no vertebrae in common, or are of several "
                         "patients; pin a level with --known instead.")
    return change_cases(folder, sorted(members), lambda name, result: under(result, name, joint), scans)


def join(results: Mapping[str, SpineResult]) -> Joint:
    """The joint numbering of the scans of one patient that explains all of them best."""
    bases = {name: basis_of(result) for name, result in results.items() if result.vertebrae}
    free = {name: decode(basis) for name, basis in bases.items()}
    groups = _groups({name: results[name] for name in bases}, bases)
    levels: dict[str, dict[int, str]] = {}
    posterior: dict[str, float] = {}
    probability: dict[str, float] = {}
    for identities in groups:
        cases = sorted({case for case, _ in identities})
        candidates = [c for c in _candidates(identities, free) if len(cases) > 1]
        if not candidates:
            continue
        logs = np.array([[_log_share(bases[case], free[case], _of_case(c, case)) for case in cases] for c in candidates])
        total = logs.sum(1)
        best = int(total.argmax())
        for case, log in zip(cases, logs[best], strict=True):
            levels[case], probability[case] = _of_case(candidates[best], case), float(np.exp(log))
            posterior[case] = float(np.exp(total[best] - np.logaddexp.reduce(total)))
    return Joint(levels, posterior, tuple(tuple(sorted({case for case, _ in group})) for group in groups), probability)


def under(result: SpineResult, name: str, joint: Joint) -> SpineResult:
    """One scan of the series under the joint numbering; a flag where it reads otherwise alone."""
    basis = basis_of(result)
    free, levels = decode(basis), joint.levels[name]
    others = [case for group in joint.groups if name in group for case in group if case != name]
    constraints = Constraints.free(len(basis.detections))
    for i, level in levels.items():
        constraints = constraints.pinned(i, level)
    numbered = number_under(basis, free, constraints, "series", f"numbered with {', '.join(others)}", joint.posterior[name] >= MIXED)
    differ = [f"{alone} is {level}" for i, level in levels.items() if (alone := free.names[i]) is not None and alone != level]
    flags = numbered.flags
    if differ and not flags:
        message = f"All scans of the patient together give other levels than this one alone ({differ[0]}{', ...' if differ[1:] else ''})."
        flags = (Flag("series_contradicts_scan", "identify", "review", message, ", ".join(differ), None,
                      "Count the vertebrae by eye in the scan that shows a landmark."),)
    assert numbered.known is not None
    known = {**numbered.known, "confidence": round(joint.posterior[name], 4)}
    return with_numbering(result, replace(numbered, known=known, flags=flags))


def _groups(results: Mapping[str, SpineResult], bases: Mapping[str, NumberingBasis]) -> list[dict[Key, int]]:
    """Matched scans: per group the place of each detection along the common row (0 = uppermost)."""
    positions = {name: [i for i, level in enumerate(basis.names) if level is not None] for name, basis in bases.items()}
    names, where = sorted(results), dict[str, tuple[int, int]]()      # case -> (group, place of its first vertebra's position 0)
    links: dict[str, list[tuple[str, tuple[tuple[int, int], ...]]]] = {name: [] for name in names}
    for a, first in enumerate(names):
        for second in names[a + 1:]:
            rows = row_of(results[first]), row_of(results[second])
            match = match_places(*rows) or match_rows(*rows)
            if match is not None and (match.same_place or match.confidence >= SURE):
                links[first].append((second, match.pairs))
                links[second].append((first, tuple((j, i) for i, j in match.pairs)))
    groups: list[dict[Key, int]] = []
    for name in names:
        if name in where:
            continue
        group: dict[Key, int] = {}
        _place(name, dict(enumerate(_places(results[name]))), group, links, results, where, len(groups))
        lowest = min(group.values())
        groups.append({(case, positions[case][i]): place - lowest for (case, i), place in group.items()})
    return groups


def _place(name: str, places: Mapping[int, int], group: dict[Key, int], links: Mapping[str, list[tuple[str, tuple[tuple[int, int], ...]]]],
           results: Mapping[str, SpineResult], where: dict[str, tuple[int, int]], number: int) -> None:
    """Give the vertebrae of `name` their places, and those of all scans that are matched with it."""
    where[name] = (number, places[0])
    group |= {(name, i): place for i, place in places.items()}
    for other, pairs in links[name]:
        if other in where:
            continue
        own = _places(results[other])
        i, j = pairs[0]
        _place(other, {k: place - own[j] + places[i] for k, place in enumerate(own)}, group, links, results, where, number)


def _places(result: SpineResult) -> list[int]:
    """Whole places of a result's vertebrae along its row: what was missed between two leaves one out."""
    from ..anatomy.vertebral_gaps import round_positions, vertebral_gaps

    centres = np.array([v.known_body_centre for v in result.vertebrae])
    return [int(p) for p in round_positions(vertebral_gaps(centres))]


def _candidates(identities: Mapping[Key, int], free: Mapping[str, Numbering]) -> list[dict[Key, str]]:
    """Joint numberings: every one that the anatomy allows, with at most one variant of each kind."""
    last = max(identities.values())
    regular = [name for name in ANATOMICAL_ORDER if name not in ("T13", "L6")]
    whole = [regular, list(ANATOMICAL_ORDER), [*regular, "L6"], [name for name in ANATOMICAL_ORDER if name != "L6"],
             [name for name in regular if name != "T12"]]
    rows = list(dict.fromkeys(tuple(order[start:start + last + 1]) for order in whole for start in range(len(order) - last)))
    return [{key: row[place] for key, place in identities.items()} for row in rows if len(row) == last + 1]


def _of_case(levels: Mapping[Key, str], case: str) -> dict[int, str]:
    return {i: level for (owner, i), level in levels.items() if owner == case}


def _log_share(basis: NumberingBasis, free: Numbering, levels: Mapping[int, str]) -> float:
    """Log probability that one scan alone gives `levels`, not below `FLOOR`: one scan that errs decides for no other."""
    constraints = Constraints.free(len(basis.detections))
    for i, level in levels.items():
        constraints = constraints.pinned(i, level)
    return float(max(min(decode(basis, constraints).log_total - free.log_total, 0.0), np.log(FLOOR)))
