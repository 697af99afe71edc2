"""The calculator: tau-bench's numbers for honest sums, an immediate refusal for anything else."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.retail.tools.calculator import MAX_CHARACTERS, MAX_DEPTH, CalculatorError, evaluate


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("47.84 + 488.81", "536.65"),
        ("(12.5 + 3) * 2 - 1/4", "30.75"),
        ("2 - 3 - 4", "-5.0"),  # left to right
        ("8 / 4 / 2", "1.0"),
        ("2 + 3 * 4", "14.0"),
        ("-(2 - 5) * -2", "-6.0"),
        ("3--2", "5.0"),
        ("+4", "4.0"),
        ("1/3", "0.33"),
        ("0.1+0.2", "0.3"),
        (".5 + 1.", "1.5"),
        ("  7  ", "7.0"),
        ("00", "0.0"),
        ("2.675", "2.67"),  # the float below 2.675, as Python rounds it
        ("99999999999999999999 - 99999999999999999998", "1.0"),  # whole numbers stay exact
    ],
)
def test_evaluates(expression: str, expected: str) -> None:
    assert evaluate(expression) == expected


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9", "unexpected '*'"),
        ("7//2", "unexpected '/'"),
        ("__import__('os').system('true')", "invalid characters"),
        ("1e400", "invalid characters"),
        ("1_000", "invalid characters"),
        ("1,000", "invalid characters"),
        ("1\n+1", "invalid characters"),
        ("\u0661+\u0661", "invalid characters"),  # Arabic digits, which \d would take
        ("\ud800", "invalid characters"),
        ("", "ends too early"),
        ("()", "unexpected ')'"),
        ("1+", "ends too early"),
        ("(1", "not closed"),
        ("1)", "unexpected ')'"),
        ("1 2", "unexpected '2'"),
        ("2(3)", "unexpected '('"),
        ("1.2.3", "unexpected '.3'"),
        ("*1", "unexpected '*'"),
        ("007", "leading zeros"),
        ("1/0", "division by zero"),
        ("1/(2-2.0)", "division by zero"),
        ("9" * 400, "too large"),
        ("9" * 300 + ".0*" + "9" * 300 + ".0", "too large"),
        ("(" * 10_000, "longer than"),
        ("1+" * MAX_CHARACTERS + "1", "longer than"),
        ("(" * 400 + "1" + ")" * 400, "nested"),
        ("-" * 900 + "1", "nested"),
    ],
)
def test_refuses_at_once(expression: str, reason: str) -> None:
    start = time.process_time()
    with pytest.raises(CalculatorError, match=re.escape(reason)):
        evaluate(expression)
    assert time.process_time() - start < 0.5


def test_depth_limit_is_exact() -> None:
    most = MAX_DEPTH - 1
    assert evaluate("(" * most + "1" + ")" * most) == "1.0"
    with pytest.raises(CalculatorError):
        evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH)


_EXPRESSIONS = st.recursive(
    st.one_of(
        st.integers(0, 10_000).map(str),
        st.decimals(0, 1000, places=2).map(str),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" + ", "-", " * ", "/"]), inner).map("".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(_EXPRESSIONS)
def test_agrees_with_python(expression: str) -> None:
    try:
        # Only text that the strategy above has built is evaluated here.
        expected = str(round(float(eval(expression, {"__builtins__": {}})), 2))
    except ZeroDivisionError:
        with pytest.raises(CalculatorError):
            evaluate(expression)
    else:
        assert evaluate(expression) == expected


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="0123456789+-*/(). ", max_size=80)))
def test_any_text_gives_a_number_or_a_calculator_error(expression: str) -> None:
    try:
        float(evaluate(expression))
    except CalculatorError:
        pass
