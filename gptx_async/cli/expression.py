"""What `gptx-async run` does with a row: an Expression that the user names, or a prompt.

A checkpoint knows a work by what pickle would keep of it (`identity.py`), so that `__getstate__`
says here what makes it another job.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import string
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from ..errors import ConfigurationError, DataFileError, OutputValueError
from ..mapping.checkpoint_values import LARGEST_INTEGER
from ..mapping.dataset import is_symbol
from ..mapping.identity import identity_of, name_of
from ..mapping.job import builder_of
from .files.json_values import to_json

__all__ = ["Prompt", "Work", "as_output", "fields_of", "load_expression"]

WHOLE = "input"
"""Under which name a row that is no JSON object stands in the output, and in a prompt."""


class Work:
    """What `map` runs for each row: the expression, between the row's value and the output's.

    Attributes:
        asked: For how many rows it was run.

    Args:
        expression: A function of one item; or a class of such, of which each thread builds one.
        field: Which field of a row is the item; the whole row when None.

    Raises:
        ConfigurationError: The expression can't be called, or is a coroutine function.
    """

    def __init__(self, expression: Any, field: str | None) -> None:
        self._expression = expression
        self._field = field
        self._build = builder_of(expression)
        self._built = threading.local()
        self._lock = threading.Lock()
        self.asked = 0

    def try_to_build(self) -> None:
        """Build an expression that is a class once: what is wrong then is wrong with each row.

        Raises:
            ConfigurationError: It can't be built.
        """
        try:
            self._build()
        except Exception as error:
            raise ConfigurationError(
                f"{name_of(self._expression)} can't be built without arguments "
                f"({type(error).__name__}: {error}). Give them defaults, or name a function or an "
                "instance."
            ) from error

    def __call__(self, value: Any) -> Any:
        """Run the expression for a row's value, in a worker's thread.

        Raises:
            DataFileError: The row lacks the field.
            OutputValueError: What the expression returned is nothing for a file.
            Exception: What the expression raises.
        """
        with self._lock:
            self.asked += 1
        item = value if self._field is None else _field_of(value, self._field)
        return as_output(self._function()(item))

    def __getstate__(self) -> dict[str, Any]:
        """Return what a checkpoint knows the work by: the expression's identity, and the field."""
        parts = identity_of(self._expression)
        parts.pop("model", None)  # of the engine, which the checkpoint knows by itself
        return {f"{name} (of the expression)": value for name, value in parts.items()} | {
            "field": self._field
        }

    def _function(self) -> Callable[[Any], Any]:
        if not hasattr(self._built, "function"):
            self._built.function = self._build()
        function: Callable[[Any], Any] = self._built.function
        return function


class Prompt:
    """Asks a prompt with the fields of a row put in, as it stands: an expression for `run`.

    Args:
        template: The prompt, with names of fields in braces; '{{' stands for one brace.

    Raises:
        ConfigurationError: It is not as described, or names no field.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self._parts = _parse(template)
        if not self.names:
            raise ConfigurationError(
                "--prompt has no field in it, so that each row would be asked the same. Name one "
                f"in braces: {template.rstrip(' .:')}: {{text}}"
            )

    @property
    def names(self) -> list[str]:
        """The fields that it needs, in the order of their places."""
        return [name for _, name in self._parts if name is not None]

    def __call__(self, value: Any) -> Any:
        """Ask about a row, in any thread.

        Raises:
            DataFileError: It lacks a field.
            Exception: What the model's call raises.
        """
        from symai import Expression

        return Expression.prompt(self.fill(value))

    def fill(self, value: Any) -> str:
        """Return the prompt with the fields of a row put in; what is no text as JSON.

        Raises:
            DataFileError: It lacks a field.
        """
        texts = []
        for literal, name in self._parts:
            texts.append(literal)
            if name is not None:
                texts.append(_as_text(_field_of(value, name)))
        return "".join(texts)

    def __getstate__(self) -> dict[str, Any]:
        return {"prompt": self.template}


def load_expression(name: str) -> Any:
    """Import what is to be an expression; its module is looked for in the working directory, too.

    Args:
        name: 'package.module:attribute'.

    Raises:
        ConfigurationError: There is nothing of that name.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise ConfigurationError(f"--expression {name!r} is not of the form package.module:Name.")
    found = _import(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            raise ConfigurationError(
                f"{module_name} has no {path!r}."
                + (f" Is {near[0]!r} meant?" if near else " Correct --expression.")
            )
        found = getattr(found, part)
    return found


def fields_of(value: Any) -> Mapping[str, Any]:
    """Return the fields of a row's value; one that is no JSON object is the field 'input'."""
    return value if isinstance(value, dict) else {WHOLE: value}


def as_output(value: Any) -> Any:
    """Return what an expression returned as a value of JSON.

    Args:
        value: Text, a value of JSON, a Symbol, or something that turns itself into such: a pydantic
            model, a dataclass, an array; or lists and dictionaries of these.

    Raises:
        OutputValueError: It is something else.
    """
    try:
        return _as_output(value)
    except RecursionError as error:
        raise OutputValueError(
            f"The expression returned a {type(value).__name__} that holds itself. {_RETURN}"
        ) from error


def _as_output(value: Any) -> Any:
    if is_symbol(value):
        return _as_output(value.value)  # first: to do anything else with it may ask the model
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and -LARGEST_INTEGER < value < LARGEST_INTEGER:
        return int(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_as_output(each) for each in value]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {str(name): _as_output(each) for name, each in value.items()}
    for method, kwargs in (("model_dump", {"mode": "json"}), ("tolist", {})):
        convert = getattr(value, method, None)
        if callable(convert) and not isinstance(value, type):
            return _as_output(convert(**kwargs))
    if is_dataclass(value) and not isinstance(value, type):
        return _as_output(asdict(value))
    shown = f"{value!r}" if isinstance(value, float) else f"a {type(value).__name__}"
    if isinstance(value, int):
        shown = "an integer of more than 640 digits"
    raise OutputValueError(f"The expression returned {shown}, which JSON does not have. {_RETURN}")


_RETURN = "Let it return text, numbers, lists, dictionaries, Symbols or pydantic models."


def _as_text(value: Any) -> str:
    """Return a field's value as a prompt has it: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else to_json(value)


def _field_of(value: Any, name: str) -> Any:
    fields = fields_of(value)
    if fields.get(name) is None:
        what = "is null" if name in fields else f"is not there; there are: {', '.join(fields)}"
        raise DataFileError(f"The field {name!r} of the row {what}. Complete the row.")
    return fields[name]


def _parse(template: str) -> list[tuple[str, str | None]]:
    """Return the literal texts of a prompt, each with the name of the field that follows it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(
            f"--prompt can't be read ({error}). Write {{name}} for a field, and {{{{ and }}}} for "
            "braces that are meant as such."
        ) from error
    for _, name, specification, conversion in parts:
        if name is not None and (not name or specification or conversion):
            raise ConfigurationError(
                "--prompt has braces that hold no name of a field. Write {name} for a field, and "
                "{{ and }} for braces that are meant as such."
            )
    return [(literal, name) for literal, name, _, _ in parts]


def _import(name: str) -> Any:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as with `python -m`
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"There is no module {error.name!r}, which --expression names. Run gptx-async in "
                "the folder that has it, or install it."
            ) from error
        raise _not_imported(name, error) from error
    except Exception as error:
        raise _not_imported(name, error) from error


def _not_imported(name: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The module {name!r}, which --expression names, can't be imported "
        f"({type(error).__name__}: {error}). `python -c 'import {name}'` shows where."
    )
