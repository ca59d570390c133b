"""Stage 1: find every vertebra with a 2D detector on sagittal and coronal slices and density clustering in 3D."""
