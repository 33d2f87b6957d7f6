"""Real runs that are killed and resumed: the short version of ``make chaos``."""

import random

from chaos import LONG, chaos

SHORT = {
    **LONG,
    "teacher_recipe": {"epochs": 1.5},
    "sandwich": {"grid": [0.5, 0.2], "epochs": 0.5},
    "student": {"scale": 0.1, "epochs": 1, "controls": False},
}


def test_a_killed_run_ends_with_the_bytes_of_one_that_was_not_disturbed() -> None:
    with chaos(SHORT, seconds=0.3) as place:
        made = place.trial(0, random.Random(1), stage="teacher", moment="training", door="retry")
        assert made.problems == []
        assert len(made.resumed_from_steps) == 1
        assert made.resumed_from_steps[0] > 0
