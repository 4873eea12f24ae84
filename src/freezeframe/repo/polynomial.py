"""Polynomials over GF(2), as integers: bit i is the coefficient of x^i.

restic cuts chunks by a rolling hash modulo a polynomial of the repository. We cut at fixed
places and never use it, but restic refuses a repository whose polynomial is reducible.
"""

from __future__ import annotations

import secrets

DEGREE = 53


def random_irreducible(degree: int = DEGREE) -> int:
    """Draw one of that degree: about every `degree`-th candidate is irreducible."""
    while True:
        candidate = 1 << degree | secrets.randbits(degree) | 1
        if is_irreducible(candidate):
            return candidate


def is_irreducible(polynomial: int) -> bool:
    """Ben-Or's test: it has no factor of degree i for any i up to half of its own.

    x^(2^i) - x is the product of all irreducible polynomials whose degree divides i.
    """
    degree = polynomial.bit_length() - 1
    if degree < 1:
        return False
    power = _remainder(2, polynomial)
    for _ in range(degree // 2):
        power = _remainder(_square(power), polynomial)
        if _common_divisor(power ^ 2, polynomial) != 1:
            return False
    return True


def _square(polynomial: int) -> int:
    """Square: over GF(2) that moves the coefficient of x^i to x^2i."""
    # Written as bits and read as base 4, every bit's place doubles.
    return int(f"{polynomial:b}", 4)


def _remainder(dividend: int, divisor: int) -> int:
    length = divisor.bit_length()
    while (excess := dividend.bit_length() - length) >= 0:
        dividend ^= divisor << excess
    return dividend


def _common_divisor(one: int, other: int) -> int:
    while other:
        one, other = other, _remainder(one, other)
    return one
