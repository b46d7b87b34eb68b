"""Grading of the exercises: points, hints, and mistakes called by their names.

Reading order:

    task           what test files write: Task, @graded
    course         where the files lie;  problems: what can be wrong with them
    target, stubs  the module under test; the stub made from a solution
    mistakes       what files of mistakes write: edited, @mistake
    fingerprint    a short numeric summary of results, and the distance of two
    recorder       records what the student's functions return
    guard          forbids library functions and large tensors meanwhile
    attempt        one test with one target
    naming         which mistake explains a failure
    parent, child  the process that grades survives the process that runs the student's code
    plugin         pytest's hooks and fixtures;  outcome: what a report tells;  reporter: who listens
    score, table   points; the table at the end and the JSON file
    progress, handout, prove, commands    what `python3 tasks.py` offers
"""

from minillm.grading.mistakes import edited, mistake
from minillm.grading.task import Task, graded

__all__ = ["Task", "edited", "graded", "mistake"]
