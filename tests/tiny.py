"""Where the repository is, and settings under which nets are small; not in conftest.py, of which there are several."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# Nets, images and steps small enough that a stage takes a second.
TINY = (
    "model.classes=3",
    "model.crop=32",
    "model.width=0.0625",
    "model.init=glorot_uniform",
    "data.S=37",
    "evaluation.multi_Q=[]",
    "train.batch=8",
    "train.iterations=6",
    "train.log_every=1",
    "evaluation.batch=8",
    "tracking.mlflow=false",
    "run.device=cpu",
)
