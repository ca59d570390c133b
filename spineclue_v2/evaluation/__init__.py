"""How good a prediction is: matching, metrics per vertebra and per scan, pooled summaries (definitions: metrics.py)."""
