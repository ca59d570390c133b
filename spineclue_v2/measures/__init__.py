"""What is measured on a labelled spine: end plates, angles, discs, sub-regions, trabecular bone."""
