"""`CASE.mrk.json`: body centres as a point list of 3D Slicer."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ...imageio.volume import Volume
from ...utilities.files import write_json
from .base import Exportable, Segment, segments_of

SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"


def write_markups(result: Exportable, labels: Volume, folder: Path, case: str) -> Path:
    """One control point per structure at its centre (LPS mm), labelled with its name; the description says how sure the level is."""
    points = [_point(number, segment) for number, segment in enumerate(segments_of(result), start=1)]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "locked": True, "fixedNumberOfControlPoints": False,
              "labelFormat": "%N", "lastUsedControlPointNumber": len(points), "controlPoints": points,
              "display": {"visibility": True, "opacity": 1.0, "pointLabelsVisibility": True, "textScale": 3.0, "glyphScale": 2.0}}
    path = folder / f"{case}.mrk.json"
    write_json(path, {"@schema": SCHEMA, "markups": [markup]})
    return path


def _point(number: int, segment: Segment) -> dict[str, Any]:
    confidence = None if segment.vertebra is None else segment.vertebra.confidence
    return {"id": str(number), "label": segment.name, "description": "" if confidence is None else f"confidence {confidence:.3f}",
            "associatedNodeID": "", "position": [round(c, 3) for c in segment.centre], "orientation": [-1, 0, 0, 0, -1, 0, 0, 0, 1],
            "selected": True, "locked": True, "visibility": True, "positionStatus": "defined"}
