"""What `gptx-async run` runs for each row: an Expression that the user names, or a prompt.

A checkpoint identifies the work by its pickled state (see `mapping/identity.py`), so `__getstate__`
returns what makes it a different job.
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
"""The field name of a row that is not a JSON object, in the output and in a prompt."""


class Work:
    """The function that `map` runs for each row: calls the expression and converts its result.

    Attributes:
        asked: For how many rows it ran.

    Args:
        expression: A function of one item, or a class of which each thread builds an instance.
        field: The field of a row to give to the expression; None for the whole row.

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
        """Build the expression once, because an error then would occur with every row.

        Raises:
            ConfigurationError: The class can't be built.
        """
        try:
            self._build()
        except Exception as error:
            raise ConfigurationError(
                f"{name_of(self._expression)} can't be built without arguments "
                f"({type(error).__name__}: {error}). Give its arguments defaults, or name a "
                "function or an instance."
            ) from error

    def __call__(self, value: Any) -> Any:
        """Run the expression for the value of a row. Called in the worker threads of `map`.

        Raises:
            DataFileError: The row lacks the field.
            OutputValueError: The expression returned something that JSON can't represent.
            Exception: Raised by the expression.
        """
        with self._lock:
            self.asked += 1
        item = value if self._field is None else _field_of(value, self._field)
        return as_output(self._function()(item))

    def __getstate__(self) -> dict[str, Any]:
        """Return what identifies the work in a checkpoint: the expression and the field."""
        parts = identity_of(self._expression)
        parts.pop("model", None)  # the checkpoint has the engine's model itself
        return {f"{name} (of the expression)": value for name, value in parts.items()} | {
            "field": self._field
        }

    def _function(self) -> Callable[[Any], Any]:
        if not hasattr(self._built, "function"):
            self._built.function = self._build()
        function: Callable[[Any], Any] = self._built.function
        return function


class Prompt:
    """An expression that fills the fields of a row into a prompt and sends it.

    Args:
        template: The prompt, with field names in braces; '{{' stands for one brace.

    Raises:
        ConfigurationError: The template is malformed, or names no field.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self._parts = _parse(template)
        if not self.names:
            raise ConfigurationError(
                "--prompt has no field in it, so each row would get the same prompt. Name a field "
                f"in braces: {template.rstrip(' .:')}: {{text}}"
            )

    @property
    def names(self) -> list[str]:
        """The field names in the template, in order."""
        return [name for _, name in self._parts if name is not None]

    def __call__(self, value: Any) -> Any:
        """Send the prompt for a row. Allowed in any thread.

        Raises:
            DataFileError: The row lacks a field.
            Exception: Raised by the call of the model.
        """
        from symai import Expression

        return Expression.prompt(self.fill(value))

    def fill(self, value: Any) -> str:
        """Return the prompt with the fields of a row. Values that are not text become JSON.

        Raises:
            DataFileError: The row lacks a field.
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
    """Import an expression. Its module may be in the working directory.

    Args:
        name: 'package.module:attribute'.

    Raises:
        ConfigurationError: The module can't be imported, or lacks the attribute.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise ConfigurationError(
            f"--expression {name!r} is not of the form package.module:Name. Correct it."
        )
    found = _import(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            raise ConfigurationError(
                f"{module_name} has no {path!r}."
                + (f" Did you mean {near[0]!r}?" if near else " Correct --expression.")
            )
        found = getattr(found, part)
    return found


def fields_of(value: Any) -> Mapping[str, Any]:
    """Return the fields of a row. A value that is not a JSON object is the field 'input'."""
    return value if isinstance(value, dict) else {WHOLE: value}


def as_output(value: Any) -> Any:
    """Return the result of an expression as a JSON value.

    Args:
        value: A JSON value, a Symbol, a pydantic model, a dataclass or an array; or lists and
            dictionaries of these.

    Raises:
        OutputValueError: The value has another type.
    """
    try:
        return _as_output(value)
    except RecursionError as error:
        raise OutputValueError(
            f"The expression returned a {type(value).__name__} that contains itself. {_RETURN}"
        ) from error


def _as_output(value: Any) -> Any:
    if is_symbol(value):
        return _as_output(
            value.value
        )  # first, because other operations on a Symbol may call the model
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
    raise OutputValueError(
        f"The expression returned {shown}, which JSON can't represent. {_RETURN}"
    )


_RETURN = "Return text, numbers, lists, dictionaries, Symbols or pydantic models."


def _as_text(value: Any) -> str:
    """Return the value of a field for a prompt: text unchanged, anything else as JSON."""
    return value if isinstance(value, str) else to_json(value)


def _field_of(value: Any, name: str) -> Any:
    fields = fields_of(value)
    if fields.get(name) is None:
        what = "is null" if name in fields else f"is missing; its fields are: {', '.join(fields)}"
        raise DataFileError(f"The field {name!r} of the row {what}. Complete the row.")
    return fields[name]


def _parse(template: str) -> list[tuple[str, str | None]]:
    """Return the literal texts of a prompt, each with the field name that follows it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigurationError(
            f"--prompt can't be read ({error}). Write {{name}} for a field, and {{{{ and }}}} for "
            "literal braces."
        ) from error
    for _, name, specification, conversion in parts:
        if name is not None and (not name or specification or conversion):
            raise ConfigurationError(
                "--prompt has braces that hold no field name. Write {name} for a field, and {{ and "
                "}} for literal braces."
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
