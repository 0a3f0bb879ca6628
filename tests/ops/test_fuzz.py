"""Random calls of each operator: the right result by the tolerance rule, or an error that names the argument.

A failure names its seed and case; ``VITFAST_FUZZ_SEED`` sets the seed. A case depends on seed, operator and case only.
"""

from __future__ import annotations

import random

import pytest

from support.accuracy import assert_accurate
from support.invalid import assert_refused, invalid_calls
from support.operators import FLOATS, OPERATORS, Operator
from support.sample import Make, fuzz_seed
from support.shapes import LAYOUTS

CASES_A_TEST = 100


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in (100, 200, 300, 400))])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_drawn_calls_are_right_or_refused(operator: Operator, first: int) -> None:
    failures = []
    for case in range(first, first + CASES_A_TEST):
        seed = f"{fuzz_seed()}-{operator.name}-{case}"
        try:
            _run_case(operator, random.Random(seed))
        except Exception as error:
            failures.append(f"case {case}: {type(error).__name__}: {error}")
    assert not failures, f"fuzz seed {fuzz_seed()}, {operator.name}, {len(failures)} failures\n" + "\n".join(failures)


def _run_case(operator: Operator, draw: random.Random) -> None:
    dtype = draw.choices(FLOATS, weights=(5, 2, 1, 1))[0]
    sample = operator.draw(draw, Make(dtype, seed=draw.getrandbits(32)))
    if draw.random() < 0.2:
        argument, what, call = draw.choice(invalid_calls(operator, sample))
        assert_refused(operator, argument, what, call)
        return
    if draw.random() < 0.5:
        chosen = {name for name in sample.tensors if draw.random() < 0.5}
        layout = draw.choice(list(LAYOUTS))
        sample = sample.replace(**{name: operator.in_layout(sample.tensors[name], layout) for name in chosen})
    assert_accurate(operator, sample)
