"""A bounded evaluator of arithmetic: numbers, + - * /, brackets and signs.

Nothing is ever passed to `eval`. `**` and `//` (a power of a power never ends), names,
exponents such as 1e9 and thousands separators are refused.
"""

import math
import re
from collections.abc import Callable
from operator import add, mul, sub, truediv

MAX_CHARACTERS = 1_000
MAX_DEPTH = 50
"""Most brackets and signs that may be open at once; keeps the recursion shallow."""

_TOKEN = re.compile(r" *(\d+\.\d*|\.\d+|\d+|[-+*/()])")


class CalculatorError(ValueError):
    """An expression that cannot be evaluated, with the reason in words."""


def evaluate(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: At most `MAX_CHARACTERS` characters of numbers, + - * /, brackets and spaces.

    Returns:
        The value rounded to 2 decimals, as text: "1.0", "536.65".

    Raises:
        CalculatorError: The expression is too long, too deep, malformed, divides by zero or has no
            finite value.
    """
    if len(expression) > MAX_CHARACTERS:
        raise CalculatorError(f"the expression is longer than {MAX_CHARACTERS} characters")
    parser = _Parser(_split(expression))
    try:
        value = float(parser.sum(MAX_DEPTH))
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("the value is too large") from None
    if parser.tokens:
        raise CalculatorError(f"unexpected {parser.tokens[-1]!r}")
    if not math.isfinite(value):
        raise CalculatorError("the value is too large")
    return str(round(value, 2))


def _split(expression: str) -> list[str]:
    """Return the tokens in reverse order, so that the next one is popped off the end."""
    if not expression.isascii():
        raise CalculatorError("invalid characters in expression")
    text = expression.rstrip(" ")
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise CalculatorError("invalid characters in expression")
        tokens.append(match.group(1))
        position = match.end()
    return tokens[::-1]


class _Parser:
    """Recursive descent over tokens; ints stay ints so that sums of whole numbers are exact."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens

    def sum(self, depth: int) -> int | float:
        return self._chain({"+": add, "-": sub}, self._product, depth)

    def _product(self, depth: int) -> int | float:
        return self._chain({"*": mul, "/": truediv}, self._signed, depth)

    def _chain(self, operators: dict[str, Callable], part: Callable, depth: int) -> int | float:
        value = part(depth)
        while self.tokens and self.tokens[-1] in operators:
            value = operators[self.tokens.pop()](value, part(depth))
        return value

    def _signed(self, depth: int) -> int | float:
        if depth == 0:
            raise CalculatorError(f"more than {MAX_DEPTH} brackets or signs are nested")
        if not self.tokens:
            raise CalculatorError("the expression ends too early")
        token = self.tokens.pop()
        if token == "-":
            return -self._signed(depth - 1)
        if token == "+":
            return self._signed(depth - 1)
        if token == "(":
            value = self.sum(depth - 1)
            if not self.tokens or self.tokens.pop() != ")":
                raise CalculatorError("a bracket is not closed")
            return value
        return _number(token)


def _number(token: str) -> int | float:
    if "." in token:
        return float(token)
    if not token.isdigit():
        raise CalculatorError(f"unexpected {token!r}")
    # As in Python, 00 is a number and 007 is not: an id that was pasted into a sum is a mistake.
    if token[0] == "0" and token.strip("0"):
        raise CalculatorError(f"{token} has leading zeros")
    return int(token)
