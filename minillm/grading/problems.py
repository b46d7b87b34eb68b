"""What can be wrong with a student's file apart from its results: each is shown as a message, without a traceback."""

from __future__ import annotations


class Problem:
    """Mixed into exceptions whose text says all that the student needs."""


class Unusable(Problem, Exception):
    """The file is missing, can't be parsed, or fails while it is imported."""


class MissingName(Problem, AttributeError):
    """A test wants a function or class that the file doesn't define."""


class Forbidden(Problem, BaseException):
    """The student's code called what would be the answer. Not an Exception: `except Exception` can't hide it."""


class TooLarge(Problem, BaseException):
    """The student's code made a tensor with more elements than the task allows."""


class CourseError(Exception):
    """Something wrong with the course's own files or with a command's arguments: one line, exit status 2."""
