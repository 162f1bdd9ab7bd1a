"""Can the judge judge? Before a file loses points, the exercise's own solution is judged.

A broken exercise, a missing package or a full disk is no student's fault.
"""

from __future__ import annotations

import functools
import shutil
import tempfile

from .book import Exercise, exercise
from .child import Fault
from .judge import Verdict, judge, judge_here

ROOM = 4 << 20  # bytes that a student's process may need on the disk


def assure(of: Exercise, verdict: Verdict, *, apart: bool = True) -> None:
    """Raise Fault if this verdict may be the judge's fault. A pass never is.

    apart: judge the solution in a process of its own, too: it takes longer.
    """
    if verdict.passed:
        return
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < ROOM:
        raise Fault(f"the disk of {folder} is full. No file was judged on it: make room, or set "
                    "TMPDIR to a folder on another disk, then run this command again")
    if of is exercise(of.number) and (failure := _failure(of.number, apart)):
        raise Fault(
            f"exercise {of.number} cannot be judged: its own solution gets {failure}. No result of "
            f"it was kept. The file is {of.path}; minilora ex dev check {of.number} tests it"
        )


@functools.cache
def _failure(number: str, apart: bool) -> str:
    """The points and the first message of an exercise's own solution; "" if it passes."""
    of = exercise(number)
    verdict = judge_here(of, of.reference, explain=False)
    if verdict.passed and apart:
        verdict = judge(of, of.solution(), explain=False)
    if verdict.passed:
        return ""
    failed = next(one for one in verdict.outcomes if one.points < one.of)
    return f"{verdict.points} of {of.points} points ({failed.title}: {' / '.join(failed.lines)})"
