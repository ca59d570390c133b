"""Labels that are wrong: found from geometry, from the scan and from what a model reads, listed worst first, corrected in a copy."""
