"""The synthetic spine: parametric anatomy -> labels -> CT (torch and numpy only)."""
from .sampling import PhantomCase, sample

__all__ = ["PhantomCase", "sample"]
