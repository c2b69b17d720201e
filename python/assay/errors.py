"""What the package raises."""

from __future__ import annotations

from typing import Any, Dict, List, Optional


class InputError(ValueError):
    """An argument that is refused. The message names it, its value and what was expected.

    Every refusal of the package is of this type: an unknown suite or feature, a case line that does
    not parse, a tensor on another device or with another dtype, shape or layout than was expected,
    a function with keywords that no kernel has, a file that cannot be read.

    Attributes:
        argument: the name of the argument.
        message: the text without this name.
    """

    def __init__(self, argument: str, message: str):
        super().__init__(f"{argument}: {message}" if argument else message)
        self.argument, self.message = argument, message


class Unsupported(NotImplementedError):
    """Raise it (or NotImplementedError) inside a kernel for a problem that it does not do.

    The case is then counted as unsupported, under the text of the exception. It is never a pass.
    """


class Failure(AssertionError):
    """A kernel that was found wrong: the text says in under ten lines where and how.

    Attributes:
        result: the result, with the fields of docs/results.md. For several failures, the first.
        results: all failed results.
    """

    def __init__(self, text: str, results: List[Dict[str, Any]]):
        super().__init__(text)
        self.results = results

    @property
    def result(self) -> Optional[Dict[str, Any]]:
        return self.results[0] if self.results else None
