"""What can be wrong with a model."""

from __future__ import annotations

from dataclasses import dataclass, field


class ImportProblem(Exception):
    """A problem found while importing; the parser turns it into a `ParserError`.

    Attributes:
        code: Name of an `ErrorCode` member.
    """

    code = "INVALID_GRAPH"

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class ModelProblem(ImportProblem):
    """The file or its top level is wrong."""

    code = "MODEL_DESERIALIZE_FAILED"


class NodeProblem(ImportProblem):
    """A node is malformed."""

    code = "INVALID_NODE"


class Unsupported(ImportProblem):
    """A valid node that tactician cannot import."""

    code = "UNSUPPORTED_NODE"


class Poisoned(Exception):
    """A node reads a result of a node that failed: nothing new to report."""


@dataclass(frozen=True)
class Problem:
    """One reported problem, before it becomes a `ParserError`.

    Attributes:
        code: Name of an `ErrorCode` member.
        text: Everything a person needs: where, what, inputs, reason, fix.
        node: Index of the node in its graph, or -1.
        name, op: The node's name and operator.
        stack: Local functions around it, outermost first.
        origin: Python file, line and function that noticed it.
    """

    code: str
    text: str
    node: int = -1
    name: str = ""
    op: str = ""
    stack: tuple[str, ...] = ()
    origin: tuple[str, int, str] = field(default=("", 0, ""))
