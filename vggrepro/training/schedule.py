"""Learning rate schedule: a pure function of the validation errors so far (Section 3.1).

"The learning rate was decreased by a factor of 10 when the validation set accuracy stopped improving", three times in
total. The paper does not define "stopped"; here it means `patience` consecutive validations, none of which lowered the
best top-1 error by at least `threshold` points. Checkpoints include the state, so a resumed run neither misses nor
repeats a drop.
"""

from dataclasses import dataclass, replace

from vggrepro.config.settings import Schedule, Train


@dataclass(frozen=True)
class Plateau:
    """State of the schedule."""

    drops: int = 0
    best: float | None = None
    """Lowest top-1 error so far, in per cent."""
    waited: int = 0
    """Validations since the last improvement."""


def after_validation(state: Plateau, error: float, settings: Schedule) -> Plateau:
    """Updates the state after a validation with a top-1 error in per cent, which fixed drops ignore."""
    if settings.kind == "fixed":
        return state
    if state.best is None or error <= state.best - settings.threshold:
        return replace(state, best=error, waited=0)
    waited = state.waited + 1
    if waited < settings.patience or state.drops >= settings.max_drops:
        return replace(state, waited=waited)
    return replace(state, drops=state.drops + 1, waited=0)


def learning_rate(settings: Train, state: Plateau, step: int) -> float:
    """Returns the learning rate of the iteration after `step` finished ones."""
    schedule = settings.schedule
    drops = state.drops if schedule.kind == "plateau" else sum(step >= at for at in schedule.drops_at)
    return settings.learning_rate * schedule.factor**drops
