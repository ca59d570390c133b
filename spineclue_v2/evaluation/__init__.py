"""How good a prediction is: matching, figures per vertebra and per scan, pooled summaries (definitions: metrics.py)."""
