"""The synthetic spine: parametric anatomy -> labels -> CT (torch and numpy only)."""

from .pathology import parse_pathology
from .sampling import PhantomCase, sample

__all__ = ["PhantomCase", "parse_pathology", "sample"]
