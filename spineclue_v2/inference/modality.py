"""Which model a scan needs, and what is said where scan and model do not go together."""
from __future__ import annotations

import logging
from collections.abc import Sequence

from ..errors import InputError
from ..flags import Flag
from ..imageio.modality import MODALITIES, ScanModality, find_modality, modality_of_path
from ..imageio.volume import Volume
from .cases import Case

logger = logging.getLogger(__name__)

AUTO = "auto"
CHOICES = (*(name.lower() for name in MODALITIES), AUTO)
REMEDY = "if it is {0} all the same, say --modality {1} (Python: modality=\"{1}\")"


def modality_of_cases(cases: Sequence[Case]) -> str:
    """"CT" or "MR": what the first of these scans is that can be read and told; CT where none can be read, which its reader will say.

    Raises InputError where scans can be read but none can be told, and where a single one cannot be read or is a label map.
    """
    doubt: InputError | None = None
    for case in cases:
        try:
            found = modality_of_path(case.path, case.series)
        except InputError:
            if len(cases) == 1:
                raise
            continue
        if found.name == "MR":
            logger.info("%s is taken for MR (%s); say --modality ct if it is CT.", case.path, found.evidence)
        if found.name in MODALITIES:
            return found.name
        doubt = doubt or InputError(doubtful(case.path, found))
    if doubt is not None:
        raise doubt
    return "CT"


def doubtful(source: object, found: ScanModality) -> str:
    """The sentence for a scan that is neither plainly CT nor plainly MR."""
    if found.by_tag:
        return f"{source} is of modality {found.name}; expected CT or MR; say --modality ct or --modality mr where the header is wrong."
    return f"Whether {source} is CT or MR cannot be told ({found.evidence}); say --modality ct or --modality mr."


def check_modality(volume: Volume, source: str, model: str, said: str = AUTO) -> tuple[Flag, ...]:
    """Flags of what is assumed about the modality of a scan. `model`: what the model labels; `said`: "ct", "mr" or "auto", by the user.

    Raises InputError where the scan is of another modality than the model, unless the user said otherwise.
    """
    if said not in CHOICES:
        raise InputError(f"The modality is given as {said!r}; expected one of {', '.join(CHOICES)}.")
    if said not in (AUTO, model.lower()):
        raise InputError(f"The scan is said to be {said.upper()} and the model labels {model}; give a model of {said.upper()}, or leave -d "
                         "and -m out for the package's own.")
    found = find_modality(volume)
    if said != AUTO:
        if found.name == model:
            return ()
        looks = f"it looks like {found.name}" if found.name else "its values do not show it"
        message = f"The scan was labelled as {model}, as was asked for, though {looks} ({found.evidence})."
        return (Flag("modality_contradicted", "read", "review" if found.name else "info", message, found.name or "unknown", model,
                     "Check that the scan is what was said."),)
    if found.by_tag and found.name not in MODALITIES:
        raise InputError(doubtful(source, found))
    if found.name and found.name != model:
        raise InputError(f"{source} is {found.name} ({found.evidence}) and this model labels {model}; leave -d and -m out for the "
                         f"package's own model of {found.name}, or, {REMEDY.format(model, model.lower())}.")
    if model == "MR" and not found.by_tag:
        message = f"The scan was taken for MR by its values: {found.evidence}."
        return (Flag("modality_assumed", "read", "info", message, round(found.negative or 0.0, 4), None, "Say --modality ct if it is CT."),)
    return ()
