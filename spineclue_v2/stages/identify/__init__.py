"""Stage 3, identify: classifiers for each vertebra's level, message fusion and the decoder that names the whole spine."""
