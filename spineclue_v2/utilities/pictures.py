"""Pictures come last and are never worth a result: drawing one may fail, and what was computed stays."""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

logger = logging.getLogger(__name__)


def draw_or_say(draw: Callable[[], object], what: str) -> str:
    """Call `draw`; "" when it worked, else why not, in a few words that were logged as well. `what`: the file, for the message."""
    try:
        _import_matplotlib()
        draw()
    except Exception as error:  # fonts, backends, settings of the user's: whatever it is, there is no picture and all the rest
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        logger.warning("%s was not drawn (%s); everything else is complete.", what, reason)
        return reason
    return ""


def import_drawing() -> None:
    """Import what the pictures need, so that nobody waits for it later."""
    _import_matplotlib()
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401


def _import_matplotlib() -> None:
    """Import it although MPLBACKEND may name a backend that is not installed here, at which the first import fails.

    The variable stays as it was: it belongs to the caller, whose own figures may need it.
    """
    try:
        import matplotlib  # noqa: F401
    except ValueError:
        backend = os.environ.pop("MPLBACKEND", None)
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # what the failed import left behind is not whole
        try:
            import matplotlib  # noqa: F401
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
