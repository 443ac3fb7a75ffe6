"""Files of a run, and its mirror in MLflow."""
