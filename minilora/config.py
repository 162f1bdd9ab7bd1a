"""A config: settings that are checked when it is created."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from . import words
from .checks import integer


class Config:
    """Base of the frozen dataclasses that hold settings.

    TypeError for an unknown setting; it gives the name used here where another package's is given.
    """

    counted: ClassVar[Mapping[str, str]] = {}  # foreign name -> a note where it counts differently

    def __new__(cls, *values: Any, **settings: Any) -> Self:
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for name, value in [*zip(names, values), *settings.items()]:
            words.refuse_value(cls.__name__, words.counterpart(name, names) or name, value)
            if name not in names:
                words.refuse(cls.__name__, name, names, cls.counted)
        return super().__new__(cls)

    def _set(self, **checked: Any) -> None:
        """Replace settings by their checked values: ints, floats, tuples."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _integers(self, least: int, *names: str) -> None:
        """Check that these settings are integers >= `least`, and store them as ints."""
        for name in names:
            self._set(**{name: integer(type(self).__name__, name, getattr(self, name), least)})
