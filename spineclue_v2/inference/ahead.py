"""What a prediction needs later, made ready on a second core while the first one reads and the networks run."""
from __future__ import annotations

import logging
import threading

from ..stages.converted import ConvertedNetwork
from ..utilities.pictures import import_drawing
from .model import Model

logger = logging.getLogger(__name__)


def prepare_ahead(model: Model, report: bool) -> None:
    """Compile the converted networks of a model in the order of its stages and, for a `report`, import what draws; returns at once.

    Who needs one of them before it is ready waits for it, as if it had begun itself. The process does not end before the thread has: what
    it imports must not be pulled down under it.
    """
    threading.Thread(target=_prepare, args=(model, report), name="prepare_ahead").start()


def _prepare(model: Model, report: bool) -> None:
    try:
        for stage in list(model.stages.values()):
            for network in stage.networks:
                if isinstance(network, ConvertedNetwork):
                    network.compile_all()
        if report:
            import_drawing()
    except Exception as error:      # it is only for speed: who needs it meets the same and says so
        logger.debug("Preparing ahead ended: %s", error)
