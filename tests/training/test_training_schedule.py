"""Learning rate schedules."""

from itertools import accumulate

import pytest

from vggrepro.config.settings import Schedule, Train
from vggrepro.training.schedule import Plateau, after_validation, learning_rate

PATIENT = Schedule(patience=2, threshold=0.1)


def states(errors: list[float], settings: Schedule) -> list[Plateau]:
    """Returns the state after each validation."""
    return list(accumulate(errors, lambda state, error: after_validation(state, error, settings), initial=Plateau()))[
        1:
    ]


def test_states_of_a_plateau_schedule() -> None:
    errors = [60.0, 50.0, 49.95, 49.91, 49.9, 49.0, 49.0, 48.95, 49.5, 49.5, 50.0, 60.0, 60.0, 20.0]
    expected = [
        # (drops, best, waited)
        (0, 60.0, 0),
        (0, 50.0, 0),
        (0, 50.0, 1),  # better, but by less than the threshold
        (1, 50.0, 0),  # two in a row: first drop
        (1, 49.9, 0),  # better by exactly the threshold, counted from the best and not from the one before
        (1, 49.0, 0),
        (1, 49.0, 1),
        (2, 49.0, 0),
        (2, 49.0, 1),
        (3, 49.0, 0),
        (3, 49.0, 1),
        (3, 49.0, 2),  # no fourth drop
        (3, 49.0, 3),
        (3, 20.0, 0),
    ]
    assert [(state.drops, state.best, state.waited) for state in states(errors, PATIENT)] == expected


def test_the_paper_allows_three_drops_by_ten() -> None:
    paper = Train()
    state = states([50.0] * 100, paper.schedule)[-1]
    assert state.drops == 3
    assert learning_rate(paper, state, step=369_999) == pytest.approx(1e-5)


def test_a_restored_state_neither_misses_nor_repeats_a_drop() -> None:
    errors = [60.0, 50.0, 50.0, 50.0, 50.0, 50.0, 40.0, 41.0]
    undisturbed = states(errors, PATIENT)
    for cut in range(len(errors)):
        resumed = Plateau(**vars(undisturbed[cut]))
        for error in errors[cut + 1 :]:
            resumed = after_validation(resumed, error, PATIENT)
        assert resumed == undisturbed[-1]


def test_fixed_drops_ignore_the_errors() -> None:
    fixed = Train(learning_rate=0.8, schedule=Schedule(kind="fixed", drops_at=(10, 20), factor=0.5))
    assert set(states([50.0] * 20, fixed.schedule)) == {Plateau()}  # else the log would tell of drops that are none
    rates = [learning_rate(fixed, Plateau(drops=7), step) for step in (0, 9, 10, 19, 20, 99)]
    assert rates == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])
