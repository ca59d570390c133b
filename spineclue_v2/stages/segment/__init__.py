"""Stage 2: one binary mask per located vertebra, from a crop of the CT and a heat map at the located centre."""
