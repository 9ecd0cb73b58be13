"""`ParserError`: one problem of a model, with TensorRT's accessors."""

from __future__ import annotations

from ...network.enums_build import ErrorCode
from .errors import Problem


class ParserError:
    """A problem that the parser found. Every accessor is a method, as in TensorRT."""

    def __init__(self, problem: Problem):
        self._problem = problem

    def code(self) -> ErrorCode:
        """What kind of problem it is."""
        return getattr(ErrorCode, self._problem.code)

    def desc(self) -> str:
        """Where it is, the inputs with their shapes, the reason, and what to do."""
        return self._problem.text

    def file(self) -> str:
        """The source file that noticed it."""
        return self._problem.origin[0]

    def line(self) -> int:
        """The line in `file`."""
        return self._problem.origin[1]

    def func(self) -> str:
        """The function in `file`."""
        return self._problem.origin[2]

    def node(self) -> int:
        """Index of the node in its graph, or -1 if the problem is not with one node."""
        return self._problem.node

    def node_name(self) -> str:
        """Name of the node."""
        return self._problem.name

    def node_operator(self) -> str:
        """Operator of the node."""
        return self._problem.op

    def local_function_stack(self) -> list[str]:
        """Local functions and subgraphs around the node, outermost first."""
        return list(self._problem.stack)

    def local_function_stack_size(self) -> int:
        return len(self._problem.stack)

    def __str__(self) -> str:
        return f"[{self._problem.code}] {self._problem.text}"

    def __repr__(self) -> str:
        return f"<ParserError {self}>"
