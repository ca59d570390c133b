"""Formats that are written on demand beside the label map: one registry, one writer each."""
from .bids import check_bids_names
from .registry import FORMATS, Format, check_formats, check_result, check_volume, format_files, missing_files, remove_formats, write_formats

__all__ = ["FORMATS", "Format", "check_bids_names", "check_formats", "check_result", "check_volume", "format_files", "missing_files",
           "remove_formats", "write_formats"]
