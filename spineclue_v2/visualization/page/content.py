"""What a page says of a case, from the record in its CASE.json alone: sentences, bars and cells, ready to be placed."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ... import anatomy
from .measure_tables import measure_tables, plain

LOW_CONFIDENCE = 0.7          # as in the picture: below it a name carries a question mark
ALTERNATIVE = 0.02            # other levels with less than this are left out
SUSPICION = 0.05              # probability of a deformity that is worth a remark
STAGES = {"read": "read", "localize": "find vertebrae", "centres": "follow the row", "segment": "segment", "appearance": "appearance",
          "ribs": "ribs", "geometry": "geometry", "identify": "name", "heights": "heights", "grade": "grade", "hybrid_2d": "label map (2D)",
          "hybrid_3d": "label map (3D)"}
"""Words for the steps of a prediction; another step keeps its own name."""
CLASSIFIERS = {"shape": "Shape of the vertebrae", "geometry": "Geometry of the bodies", "appearance": "Surroundings in the CT",
               "ribs": "Ribs and width beside the bodies"}
"""What a classifier looks at, as the beginning of "... alone: T1 to T12, agrees"."""
REMARKS = {
    "heights": "Heights are those of the body in the mask. Missing height compares them with the neighbours or with the body's own back. "
               "A grade that heights imply follows Genant's limits (20, 25, 40 %) and says nothing of the cause.",
    "trabecular_hu": "Trabecular HU is the median in the middle of the body. Contrast raises it, tube voltage and scanner shift it."}
"""Remarks of a record in the words of the page, by the key that they explain."""
NOT_ANCHORED = "The numbering is not anchored: the levels that these values stand under may all be shifted together."


def page_content(record: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a case's page by name, plain values only.

    Args:
        record: content of CASE.json, of a CT or an MR. Keys that it lacks leave their part empty.
    """
    rows = [_vertebra(vertebra, others) for vertebra, others in _with_others(record)]
    rows = rows or sorted(map(_structure, record.get("structures", ())), key=lambda row: -(row["centre"] or (0, 0, 0))[2])
    said = {flag.get("message") for flag in record.get("flags", ())}
    return {"is_mr": "structures" in record, "rows": rows, "summary": summary(record), "badges": badges(record),
            "graded": any(row["grade"] for row in rows), "measured": any(row["heights"] for row in rows),
            "numbering": numbering(record), "evidence": evidence(record), "flags": list(record.get("flags", ())),
            "notes": [note for note in record.get("notes", ()) if note not in said],
            "remarks": [*patient_grades(record), *(REMARKS.get(remark.split(":")[0], remark) for remark in record.get("remarks", ()))],
            "measures": measure_tables(record.get("measures", {})),
            "measures_doubt": NOT_ANCHORED if record.get("measures") and not record.get("numbering_anchored") else "",
            "made": made(record), "seconds": seconds(record)}


def summary(record: Mapping[str, Any]) -> str:
    """"12 vertebrae, T1 to T12"; of an MR "7 bodies, T12 to S, 7 discs" """
    if "structures" in record:
        return _summary_of_structures(record["structures"])
    names = [vertebra.get("level") or "?" for vertebra in record.get("vertebrae", ())]
    if len(names) < 2:
        return f"1 vertebra, {names[0]}" if names else "No vertebra found"
    return f"{len(names)} vertebrae, {names[0]} to {names[-1]}"


def _summary_of_structures(structures: Sequence[Mapping[str, Any]]) -> str:
    kinds: dict[str, list[str]] = {"body": [], "disc": [], "other structure": []}
    for row in sorted(structures, key=lambda row: -(row.get("centroid_mm") or (0, 0, 0))[2]):
        kinds[row["kind"] if row.get("kind") in kinds else "other structure"].append(row.get("structure", "?"))
    several = {"body": "bodies", "disc": "discs", "other structure": "other structures"}
    parts = [f"{len(names)} {kind if len(names) == 1 else several[kind]}" for kind, names in kinds.items() if names]
    if len(kinds["body"]) > 1:
        parts[0] += f", {kinds['body'][0]} to {kinds['body'][-1]}"
    return ", ".join(parts) or "No structure found"


def badges(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a reader must see first: `kind` ("good", "doubt", "stop") and `text`."""
    found = []
    if record.get("vertebrae"):
        anchored = record.get("numbering_anchored")
        found.append({"kind": "good", "text": "Numbering anchored"} if anchored else {"kind": "doubt", "text": "Numbering not anchored"})
    if record.get("structures"):
        counted = record.get("numbering_anchored")
        found.append({"kind": "good", "text": "Counted from the sacrum"} if counted else
                     {"kind": "doubt", "text": "No sacrum to count from"})
    if record.get("review_required"):
        found.append({"kind": "stop", "text": "Review required"})
    if record.get("incomplete"):
        found.append({"kind": "doubt", "text": "Incomplete: " + ", ".join(record["incomplete"])})
    return found


def patient_grades(record: Mapping[str, Any]) -> list[str]:
    """One sentence on the grades of all bodies, where the model gives any."""
    grading = record.get("grading")
    if not grading:
        return []
    graded, missing, worst = grading.get("graded", 0), grading.get("not_graded", {}), grading.get("worst")
    text = f"{graded} of {graded + len(missing)} thoracic and lumbar bodies have a grade"
    if missing:
        text += f"; not measured: {', '.join(missing)}"
    if worst:
        text += f"; grade 1 or higher is likeliest of {worst['level']} ({100 * worst['probability']:.0f} %)"
    return [text + "."]


def numbering(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """How probable the numbering and its shifts are: `sentence`, and `bars` of `text`, `span`, `probability`, `given`."""
    if not record.get("vertebrae"):
        return None
    anchored, shifts = bool(record.get("numbering_anchored")), record.get("extra", {}).get("identify", {}).get("shifts", ())
    bars = [{"text": _shift_words(entry["shift"]), "span": entry.get("levels") or "not possible", "probability": entry["probability"],
             "given": entry["shift"] == 0} for entry in shifts]
    if bars:
        rest = max(0.0, 1.0 - sum(bar["probability"] for bar in bars))
        bars.append({"text": "another numbering", "span": "a level more or less in between", "probability": rest, "given": False})
    if anchored:
        sentence = "The numbering is anchored: shifted numberings together are improbable."
    else:
        sentence = ("The numbering is not anchored: all names together may be shifted up or down. Check them against the ribs, the sacrum "
                    "or C2.")
    return {"sentence": sentence, "anchored": anchored, "bars": bars}


def _shift_words(shift: int) -> str:
    if not shift:
        return "this numbering"
    return f"{'one level' if abs(shift) == 1 else 'two levels'} {'lower' if shift > 0 else 'higher'}"


def evidence(record: Mapping[str, Any]) -> dict[str, Any]:
    """`classifiers` (name, what it reads, whether that agrees), `landmarks` and the number of `rejected` detections."""
    said = record.get("extra", {}).get("identify", {})
    classifiers = []
    for sentence in said.get("alone", ()):
        name, _, reads = sentence.partition(": ")
        span, _, against = reads.partition(", ")
        classifiers.append({"name": CLASSIFIERS.get(name, name), "span": span, "against": against})
    return {"classifiers": classifiers, "landmarks": list(said.get("landmarks", ())), "rejected": said.get("rejected", 0)}


def made(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Model, plan, weights and versions, as pairs of name and text."""
    plans, versions = record.get("plans", {}), record.get("versions", {})
    found = [("Model", plain(plans.get("source"))), ("Dataset", plain(plans.get("dataset"))), ("Plan", plain(plans.get("name")))]
    if isinstance(plans.get("weights"), Mapping):
        found += [(f"Weights of {stage}", plain(sums)) for stage, sums in plans["weights"].items()]
    found += [("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]
    return [(name, text) for name, text in found if text]


def seconds(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Steps in their order with their seconds and their share of the longest; the total last."""
    taken = dict(record.get("seconds", {}))
    total = taken.pop("total", None)
    longest = max([*taken.values(), 1e-9])
    steps = [{"step": STAGES.get(name, name), "seconds": value, "share": value / longest} for name, value in taken.items()]
    return [*steps, {"step": "all", "seconds": total, "share": None}] if total is not None else steps


def _with_others(record: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, float]]]:
    """Every vertebra with the probabilities of other levels under all possible numberings, where the record has them."""
    vertebrae = record.get("vertebrae", ())
    others = record.get("extra", {}).get("identify", {}).get("other_levels", ())
    if len(others) != len(vertebrae):
        others = [{}] * len(vertebrae)
    return list(zip(vertebrae, others, strict=True))


def _vertebra(vertebra: Mapping[str, Any], others: Mapping[str, float]) -> dict[str, Any]:
    level, confidence = vertebra.get("level"), vertebra.get("confidence")
    heights, grading = vertebra.get("heights") or {}, vertebra.get("grading") or {}
    likely = sorted(((name, p) for name, p in others.items() if p >= ALTERNATIVE), key=lambda pair: -pair[1])
    loss = heights.get("loss")
    together = grading.get("combined") or grading
    grade, by = (together.get("grade"), "network") if grading else (heights.get("implied_grade"), "heights")
    unsure = confidence is not None and confidence < LOW_CONFIDENCE
    suspicion = 1 - together["probabilities"][0] if grading.get("combined") else 0.0
    said = ((vertebra.get("touches_border"), "truncated by the border of the scan"), (unsure, "level unsure"),
            (grading.get("disagrees_with_heights"), "network and heights disagree"), (heights.get("implied_grade"), heights.get("shape")),
            (vertebra.get("height_doubt"), f"no heights: {vertebra.get('height_doubt')}"),
            (suspicion >= SUSPICION, f"grade 1 or higher: {100 * suspicion:.0f} %"))
    marks = [text for wanted, text in said if wanted and text]
    return {"name": level or "?", "key": vertebra.get("label"), "colour": _colour(level), "confidence": confidence, "unsure": unsure,
            "others": likely, "volume": vertebra.get("volume_ml"),
            "heights": heights.get("measured_mm"), "loss": None if loss is None else max(0.0, *loss), "hu": vertebra.get("trabecular_hu"),
            "grade": grade, "grade_by": by, "marks": marks, "centre": vertebra.get("body_centre_mm")}


def _structure(row: Mapping[str, Any]) -> dict[str, Any]:
    name = row.get("structure", "?")
    confidence = row.get("confidence")
    return {"name": name, "key": row.get("label"), "colour": _colour(name.split("/")[0], "/" in name), "confidence": confidence,
            "unsure": confidence is not None and confidence < LOW_CONFIDENCE,
            "others": [], "volume": row.get("volume_ml"), "heights": None, "loss": None, "hu": None, "grade": None, "grade_by": "",
            "height": row.get("height_mm"), "signal": row.get("signal_to_csf"), "kind": row.get("kind", ""),
            "marks": ["truncated by the border of the scan"] if row.get("touches_border") else [],
            "centre": row.get("centroid_mm")}


def _colour(level: str | None, disc: bool = False) -> str:
    """CSS colour of a structure; a disc's lies between its upper neighbour's and white."""
    if level not in anatomy.LABEL_OF_NAME:
        return "#b2b2b2"
    return "#" + "".join(f"{(c + 255) // 2 if disc else c:02x}" for c in anatomy.colour(level))
