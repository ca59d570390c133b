"""What a reader should know of the names in a labelled MR."""
from __future__ import annotations

from ...flags import Flag
from .level_assignment import LevelAssignment

SURE_FROM = 0.8


def flags_of(named: LevelAssignment, found: bool = True) -> tuple[Flag, ...]:
    """Flags of how levels were named; none where nothing was `found`."""
    if not found:
        return ()
    flags = []
    if named.anchored:
        flags.append(Flag("counted_from_sacrum", "result", "info", "Levels are counted from the sacrum: in a spine with four or six "
                          "lumbar vertebrae the names above are off by one.",
                          what_to_do="Count from C2 where it matters, as before an operation."))
    else:
        flags.append(Flag("no_sacrum", "result", "review", "No sacrum was found, from which levels are counted: all may be shifted.",
                          what_to_do="Check the levels by eye, or use a scan that shows the sacrum."))
    doubted = {name: value for name, value in named.confidence.items() if value < SURE_FROM}
    if doubted:
        flags.append(Flag("unsure_level", "result", "review", f"Levels are unsure: {', '.join(doubted)}.", round(min(doubted.values()), 3),
                          SURE_FROM, "Check the levels by eye."))
    if named.unnamed:
        flags.append(Flag("unnamed_body", "result", "review", f"{named.unnamed} vertebral bodies have no level that fits and are left "
                          "out.", named.unnamed, 0, "Check the levels by eye."))
    return tuple(flags)
