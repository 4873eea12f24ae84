"""LVM's configuration text: `name = value`, `name = [ values ]`, `name { … }`.

Source: `libdm-config.c`. A careful subset, which is all that LVM writes: no includes, no
nested arrays, no section twice. Linear in time, bounded in depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

from freezeframe.core.errors import NotUnderstood

Scalar: TypeAlias = "str | int | float"
Section: TypeAlias = "dict[str, Value]"
Value: TypeAlias = "Scalar | list[Scalar] | Section"

#: Group, its volumes, a volume, a segment: four. Some room for what is to come.
_DEEPEST = 10

_TOKEN = re.compile(
    r"""
    (?P<blank>[\s\0]+|\#[^\n]*)
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<punctuation>[][{}=,])
  | (?P<word>[A-Za-z0-9_.+/:-]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_FLOAT = re.compile(r"-?[0-9]{1,20}\.[0-9]{1,20}")

_Token: TypeAlias = tuple[str, str]
_END: _Token = ("end", "")


def _unclear(reason: str) -> NotUnderstood:
    return NotUnderstood(f"LVM metadata that cannot be read: {reason}")


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unclear(f"what is {text[position : position + 10]!r}?")
        position = match.end()
        if match.lastgroup != "blank":
            yield str(match.lastgroup), match[0]
    yield _END


def parse(text: str) -> Section:
    """Read a text to its end. Raises `NotUnderstood` where it is not well-formed."""
    tokens = _tokens(text)
    top: Section = {}
    open_sections = [top]
    for token in tokens:
        if token == _END:
            break
        if token == ("punctuation", "}"):
            open_sections.pop()
            if not open_sections:
                raise _unclear("a section ends that never began")
            continue
        name = _name(token)
        section = open_sections[-1]
        if name in section:
            raise _unclear(f"{name} is there twice")
        follows = next(tokens)
        if follows == ("punctuation", "{"):
            inner: Section = {}
            section[name] = inner
            open_sections.append(inner)
            if len(open_sections) > _DEEPEST:
                raise _unclear("it is too deep")
        elif follows == ("punctuation", "="):
            section[name] = _value(next(tokens), tokens)
        else:
            raise _unclear(f"{follows[1]!r} follows {name}")
    if len(open_sections) != 1:
        raise _unclear("it ends in a section")
    return top


def _name(token: _Token) -> str:
    kind, content = token
    if kind == "word":
        return content
    if kind == "string":
        return _string(content)
    raise _unclear(f"{content!r} is no name")


def _string(content: str) -> str:
    return _ESCAPE.sub(r"\1", content[1:-1])


def _value(token: _Token, tokens: Iterator[_Token]) -> Scalar | list[Scalar]:
    if token != ("punctuation", "["):
        return _scalar(token)
    values: list[Scalar] = []
    for item in tokens:
        if item == ("punctuation", "]"):
            return values
        if item != ("punctuation", ","):
            values.append(_scalar(item))
    raise _unclear("a list does not end")


def _scalar(token: _Token) -> Scalar:
    kind, content = token
    if kind == "string":
        return _string(content)
    if kind == "word" and _INTEGER.fullmatch(content):
        return int(content)
    if kind == "word" and _FLOAT.fullmatch(content):
        return float(content)
    raise _unclear(f"{content!r} is no value")


# -- looking things up ------------------------------------------------------------------


def section(parent: Section, name: str) -> Section:
    """Return a section of a section; an empty one where it is missing."""
    value = parent.get(name, {})
    if not isinstance(value, dict):
        raise _unclear(f"{name} is no section")
    return value


def string(parent: Section, name: str) -> str:
    """Return a string; `NotUnderstood` where it is missing or something else."""
    value = parent.get(name)
    if not isinstance(value, str):
        raise _unclear(f"{name} is no string")
    return value


def integer(parent: Section, name: str, *, default: int | None = None) -> int:
    """Return a number from 0 up; `NotUnderstood` where it is something else."""
    value = parent.get(name, default)
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise _unclear(f"{name} is no number that makes sense")
    return value


def scalars(parent: Section, name: str) -> list[Scalar]:
    """Return a list; an empty one where it is missing."""
    value = parent.get(name, [])
    if not isinstance(value, list):
        raise _unclear(f"{name} is no list")
    return value


def strings(parent: Section, name: str) -> frozenset[str]:
    """Return the strings of a list; an empty set where it is missing."""
    return frozenset(str(item) for item in scalars(parent, name))
