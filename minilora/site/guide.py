"""The teacher's guide, with tables of the courses and exercises."""

from __future__ import annotations

from dataclasses import dataclass

from .. import __version__
from ..exercises.book import MILESTONES, OWN, Exercise, exercise, exercises
from ..words import INSTALL
from .contents import chapter


@dataclass(frozen=True)
class Course:
    """A course: its hours, chapters and exercises."""

    hours: int
    about: str
    chapters: tuple[str, ...]
    exercises: tuple[str, ...]

    @property
    def minutes(self) -> int:
        """The minutes of reading and writing."""
        reading = sum(int(chapter(number).time.split()[0]) for number in self.chapters)
        return reading + sum(exercise(number).minutes for number in self.exercises)


COURSES = (
    Course(2, "LoRA for people who already train models.", ("00", "07"), ("06", "08")),
    Course(
        4, "LoRA, and how to prove that a merge is right.",
        ("00", "07", "08", "09"), ("06", "07", "08", "09"),
    ),
    Course(
        10, "From a derivative to a merged model: the students build every part by hand.",
        ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09"),
        ("01", "02", "03", "04", "05", "06", "07", "08", "10"),
    ),
)
PAGE = """\
# Teaching with minilora

A student needs Python 3.11. No account, no download of data and no GPU is needed.

    {install[0]}        in {install[2]}
    minilora ex init                  write a folder with a stub for each exercise
    minilora ex check 01              check an exercise; show the smallest case that fails
    minilora ex hint 01               show the next of three hints
    minilora ex status                show the progress

The chapters: `minilora tutorials list` lists them. `minilora tutorials build -o site` writes them
as pages that work offline, from a USB stick too.

## Courses

{courses}

For your own course, list its exercises in order:

    minilora ex init course --only 06,08

## The exercises

| | exercise | functions | minutes | points | after chapter |
|---|---|---|---|---|---|
{table}

Each check has points, so a partly right solution earns a part of them. A check is a property: it is
tried on cases that a seed draws. Grading uses the same checks and draws other cases.
After {milestones}, a milestone runs the student's own functions in the engine and trains a model
with them: `minilora ex milestone 05`.

## Grade

    minilora ex grade SUBMISSIONS --seed 7 --jobs 2 --csv out.csv --html class.html

The folder SUBMISSIONS contains a folder for each student, or a file STUDENT-ex02_name.py. First
look at who is a student and which file counts; names that could be read in two ways are an error:

    minilora ex grade SUBMISSIONS --list

`class.html` shows the mistakes of the class and how frequent they are: what to discuss next.
`--json` and `--gradescope` write files for other programs. The same seed gives the same bytes. An
interrupted run continues where it stopped. A later run replaces these files if nobody changed
them, and other files only with `--force`.

Each submission runs in its own process with limits of time, memory, output and files. The checks
run in another process. It may not start a process or write a file, and it cannot read the
solutions. That stops accidents and pranks. It is no security sandbox: grade submissions of
strangers in a container or a virtual machine. If an exercise cannot be judged, because its file is
broken, a package is missing or the disk is full, the run stops and says so: nobody gets 0 points.

**A large course.** `--jobs 8` judges eight files at a time. Several machines share the work as a
Dask cluster (`dask scheduler`, and `dask worker ADDRESS --nthreads 1` on each) if all have the same
versions of Python, NumPy and minilora:

    minilora ex grade SUBMISSIONS --seed 7 --csv out.csv --executor dask:tcp://HOST:8786

**GitHub Classroom.** Make a template repository with `minilora ex init .`, and put a wheel of
minilora into it: `pip wheel --no-deps .` in {install[2]} makes one. Add
one autograding test of the kind "run a command" for each exercise. Its setup command and its
command are

    pip install './{wheel}[exercises]'
    minilora ex check 06

The command exits with 0 on a pass, with 1 otherwise, and with 2 if it cannot judge.

**Gradescope.** Choose an Ubuntu image with Python 3.11 or newer. Upload a zip with three files: the
wheel, `setup.sh` and `run_autograder`. `setup.sh` is

    #!/usr/bin/env bash
    apt-get update && apt-get install -y python3-venv
    python3 -m venv /autograder/minilora
    /autograder/minilora/bin/pip install '/autograder/source/{wheel}[exercises]'

and `run_autograder`, whose first line must be there, is

    #!/usr/bin/env bash
    /autograder/minilora/bin/minilora ex grade /autograder/submission --only 06 --seed 7 \\
        --gradescope /autograder/results/results.json

All that is submitted is one student. An empty submission or a wrong file name gets 0 points and a
sentence that says what is missing. Nothing else is written into `results`.

## Change the course

- Leave out or reorder exercises: `--only`, for `init` and for `grade`.
- Add an exercise: `minilora ex dev new 14_name` writes a file to start from. It contains the
  statement, the solution, the hints, the checks and the known mistakes; the stub is made from it.
  Put such files into a folder, and set the environment variable `{own}` to that folder, on the
  students' machines too. A file with the number of a built-in exercise replaces that exercise.
- `minilora ex dev check 14` tests an exercise: the solution passes, the stub fails every check,
  each known mistake fails and the verdict names it, a memorised answer fails.
- `minilora ex dev messages` prints the message for each known mistake, for proofreading.
"""


def page() -> str:
    """Return the guide in Markdown."""
    return PAGE.format(
        courses="\n".join(_line(course) for course in COURSES),
        table="\n".join(map(_row, exercises())),
        milestones=", ".join(MILESTONES), own=OWN,
        install=INSTALL("exercises").partition(" in "),
        wheel=f"minilora-{__version__}-py3-none-any.whl",
    ).rstrip()


def _line(course: Course) -> str:
    return (
        f"- **{course.hours} hours.** {course.about} Chapters {', '.join(course.chapters)}; "
        f"exercises {', '.join(course.exercises)}. About {course.minutes} minutes of reading and "
        "writing."
    )


def _row(of: Exercise) -> str:
    functions = ", ".join(f"`{name}`" for name in of.functions)
    return f"| {of.number} | {of.title} | {functions} | {of.minutes} | {of.points} | {of.chapter} |"
