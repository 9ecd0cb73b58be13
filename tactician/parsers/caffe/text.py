"""Prototxts: protobuf's text format, with line numbers and a note of unknown fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .errors import CaffeProblem
from .schema import WITHOUT_INFLUENCE, net_messages

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]* | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' | [A-Za-z_][\w./]*
      | [-+]?[\d.][\w.+-]* | .""", re.X)


@dataclass
class Entry:
    """A field as written.

    Attributes:
        name: The field.
        line: Where it stands.
        inner: Fields inside, for messages.
    """

    name: str
    line: int
    inner: list[Entry] = field(default_factory=list)


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for m in _TOKEN.finditer(text):
        token = m.group()
        if not token.isspace() and not token.startswith("#"):
            yield token, line
        line += token.count("\n")


def outline(text: str) -> list[Entry]:
    """The fields of a prototxt with their lines; forgiving, errors are left to the parser."""
    root = Entry("", 0)
    stack, name, colon = [root], None, False
    for token, line in _tokens(text):
        if token in "{<":
            if name is not None:
                stack[-1].inner.append(name)
            stack.append(name if name is not None else Entry("", line))
            name, colon = None, False
        elif token in "}>":
            if len(stack) > 1:
                stack.pop()
            name, colon = None, False
        elif token == ":":
            colon = True
        elif colon:
            if name is not None:
                stack[-1].inner.append(name)
            name, colon = None, False
        elif token[0].isalpha() or token[0] == "_":
            name = Entry(token, line)
        else:
            name = None
    return root.inner


@dataclass
class Prototxt:
    """A prototxt that was read.

    Attributes:
        net: The ``NetParameter``.
        lines: Line of each layer, in the order of ``layer`` (or ``layers``).
        inputs: Line of each ``input``.
        unknown: (path, line) of fields that nothing here knows, once per path.
    """

    net: Any
    lines: list[int]
    inputs: list[int]
    unknown: list[tuple[str, int]]


def read_prototxt(data: bytes | str, where: str) -> Prototxt:
    """Parses a prototxt.

    Args:
        data: The file's contents.
        where: What to call it in messages.

    Raises:
        CaffeProblem: If it is no prototxt; with line and column.
    """
    from google.protobuf import text_format

    try:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise CaffeProblem(
            f"{where} is no prototxt: it isn't text (byte {e.start}); is it the .caffemodel? The "
            "deploy file comes first, the weights second") from None
    net = net_messages()["NetParameter"]()
    try:
        text_format.Parse(text, net, allow_unknown_field=True)
    except (text_format.ParseError, ValueError) as e:
        raise CaffeProblem(f"{where} is no prototxt: {e} (line:column first)") from None
    entries = outline(text)
    seen: dict[str, int] = {}
    _find_unknown(entries, net.DESCRIPTOR, "", seen)
    used = "layer" if net.layer else "layers"
    return Prototxt(net, [e.line for e in entries if e.name == used],
                    [e.line for e in entries if e.name == "input"], list(seen.items()))


def _find_unknown(entries: list[Entry], message: Any, path: str, seen: dict[str, int]) -> None:
    for e in entries:
        if e.name in WITHOUT_INFLUENCE:
            continue
        f = message.fields_by_name.get(e.name)
        if f is None:
            seen.setdefault(f"{path}{e.name}", e.line)
        elif f.message_type is not None:
            _find_unknown(e.inner, f.message_type, f"{path}{e.name}.", seen)
