"""What is missing in the Genant grades of a dataset: files of no case, vertebrae without a mask, grades of one kind alone."""
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from spineclue_v2.dataset.raw import RawDataset

from .integrity import Finding
from .rules import can_learn_grades

MOST_NAMED = 3


def grade_counts(raw: RawDataset, levels: Mapping[str, Collection[str]]) -> dict[str, int]:
    """{Genant grade: vertebrae of that grade whose mask is there}; `levels`: those of each case's label map."""
    found = Counter(str(grade) for case, grades in raw.grades.items() for level, grade in grades.items() if level in levels[case])
    return {str(grade): found[str(grade)] for grade in range(4)}


def check_grades(raw: RawDataset, levels: Mapping[str, Collection[str]]) -> list[Finding]:
    """Warnings about grades that nothing can be learned from, and a note on cases without any; nothing for a dataset without grades."""
    strays, findings = raw.stray_grades, []
    for case in sorted(set(raw.grades) & set(levels)):
        unseen = sorted(set(raw.grades[case]) - set(levels[case]))
        if unseen:
            findings.append(Finding(case, "warning", "grades", f"graded but not in the label map: {', '.join(unseen)}"))
    if strays:
        named = ", ".join(strays[:MOST_NAMED]) + (f" and {len(strays) - MOST_NAMED} more" if len(strays) > MOST_NAMED else "")
        findings.append(Finding(strays[0], "warning", "grades", f"gradesTr holds grades of no case: {named}; expected names of cases, such "
                                f"as {raw.cases[0]}.json"))
    if not raw.grades:
        return findings
    counts, ungraded = grade_counts(raw, levels), [case for case in raw.cases if case not in raw.grades]
    if not can_learn_grades(counts):
        held = ", ".join(f"{count} of grade {grade}" for grade, count in counts.items() if count) or "none with a mask"
        findings.append(Finding(next(iter(raw.grades)), "warning", "grades", f"graded vertebrae of the dataset: {held}; stage grade needs "
                                "some of grade 0 and some above, so it is not planned"))
    if ungraded:
        findings.append(Finding(ungraded[0], "note", "grades", f"{len(ungraded)} of {len(raw.cases)} cases have no grades"))
    return findings
