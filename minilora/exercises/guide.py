"""The page for teachers, made from the chapters and exercises that are there."""

from __future__ import annotations

from dataclasses import dataclass

from .. import site
from .book import MILESTONES, OWN, Exercise, exercise, exercises


@dataclass(frozen=True)
class Course:
    """Hours with what is read and written in them."""

    hours: int
    about: str
    chapters: tuple[str, ...]
    exercises: tuple[str, ...]

    @property
    def minutes(self) -> int:
        """Of reading and writing together."""
        read = sum(int(site.chapter(number).time.split()[0]) for number in self.chapters)
        return read + sum(exercise(number).minutes for number in self.exercises)


COURSES = (
    Course(2, "What LoRA is, for who trains models already.", ("00", "07"), ("06", "08")),
    Course(
        4, "LoRA, and how one knows that a merge is right.",
        ("00", "07", "08", "09"), ("06", "07", "08", "09"),
    ),
    Course(
        10, "From a derivative to a merged model: everything is built by hand.",
        ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09"),
        ("01", "02", "03", "04", "05", "06", "07", "08", "10"),
    ),
)
PAGE = """\
# Teaching with minilora

A student needs Python 3.11 and no account, no download, no GPU:

    pip install 'minilora[exercises]'
    minilora ex init                  a folder with a stub for each exercise
    minilora ex check 01              what is right, and the smallest case that is not
    minilora ex hint 01               three hints, nearer and nearer
    minilora ex status                how far one is

What a student reads: `minilora tutorials list`; `minilora tutorials build -o site` makes pages that
work from a USB stick.

## Courses

{courses}

    minilora ex init course --only 06,08        a course of these, in this order

## The exercises

| | exercise | functions | minutes | points | after chapter |
|---|---|---|---|---|---|
{table}

Points are of the checks, so a part that is right earns its part. Each check is a property that is
tried on cases drawn by a seed; grading draws others than a student saw, and knows no other kind.
After {milestones} a milestone puts the student's own functions into the engine and trains with
them: `minilora ex milestone 05`.

## Grade

    minilora ex grade SUBMISSIONS --seed 7 --jobs 2 --csv out.csv --html class.html

SUBMISSIONS holds a folder for each student, or one file each. `class.html` says which mistakes the
class made and how often: what to talk about next. `--json` and `--gradescope` write files for other
programs. The same seed gives the same bytes. A run that was interrupted goes on where it was.

Each submission runs in a process of its own with limits of time, memory, output and files, and
may start no process and write no file. That stops accidents and pranks. It is no security sandbox:
grade submissions of strangers in a container or a virtual machine.

**GitHub Classroom.** A repository from `minilora ex init`, with one autograding test for each
exercise: `pip install 'minilora[exercises]' && minilora ex check 06`. It exits with 0 on a pass
and with 1 otherwise.

**Gradescope.** `setup.sh` installs the package. `run_autograder`:

    minilora ex grade /autograder/submission --seed 7 --gradescope /autograder/results/results.json

## Change the course

- Drop or reorder: `--only`, above, for `init` and for `grade`.
- Add one: `minilora ex dev new 14_name` writes a file to begin from. It holds the statement, the
  solution, the hints, the checks and the known mistakes; stubs are made from it. Put such files in
  a folder and let the environment variable `{own}` name it, for students too. A file with the
  number of a built-in exercise takes its place.
- `minilora ex dev check 14` tries what an exercise must live up to: its solution passes, its stub
  fails every check, each known mistake fails and is told by its name, a memorised answer fails.
- `minilora ex dev messages` prints what each known mistake is told, to be read as prose.
"""


def page() -> str:
    """The page, in Markdown."""
    return PAGE.format(
        courses="\n".join(_told(course) for course in COURSES),
        table="\n".join(map(_row, exercises())),
        milestones=", ".join(MILESTONES), own=OWN,
    ).rstrip()


def _told(course: Course) -> str:
    return (
        f"- **{course.hours} hours.** {course.about} Chapters {', '.join(course.chapters)}; "
        f"exercises {', '.join(course.exercises)}. About {course.minutes} minutes of reading and "
        "writing."
    )


def _row(of: Exercise) -> str:
    functions = ", ".join(f"`{name}`" for name in of.functions)
    return f"| {of.number} | {of.title} | {functions} | {of.minutes} | {of.points} | {of.chapter} |"
