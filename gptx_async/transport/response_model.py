"""Parse a response into the SDK's model by pydantic, straight from its bytes.

The result equals what the SDK builds, which takes much longer. The SDK accepts any response; here a
response that does not match its class exactly is left to the SDK.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import pydantic

__all__ = ["can_parse", "parse"]


def can_parse(cast_to: type[Any]) -> bool:
    """Return whether pydantic builds what the SDK would for any response of a class.

    Args:
        cast_to: The class.
    """
    try:
        _models_in(cast_to)  # type: ignore[arg-type] # a class is hashable
    except (AttributeError, TypeError):
        return False
    return True


def parse(cast_to: type[Any], body: bytes) -> Any:
    """Build a response from its bytes, as the SDK would; None to leave it to the SDK.

    Args:
        cast_to: The response's class.
        body: The response as JSON.
    """
    try:
        model = cast_to.model_validate_json(body, strict=True)
    except ValueError:
        return None
    _unset_extras(model)
    return model


def _unset_extras(model: pydantic.BaseModel) -> None:
    """Leave fields that a class does not declare out of the fields that are set, as the SDK does.

    The SDK builds a field of a union, such as a model or None, by pydantic: extras stay set there.
    """
    if model.__pydantic_extra__:
        model.__pydantic_fields_set__.difference_update(model.__pydantic_extra__)
    for name in _models_in(type(model)):
        value = getattr(model, name)
        for each in value if isinstance(value, list) else [value]:
            _unset_extras(each)


@functools.cache
def _models_in(kind: type[pydantic.BaseModel]) -> Sequence[str]:
    """Return the names of the fields that hold a model or a list of models.

    Raises:
        TypeError: A field is a float, which pydantic sets for a whole number; the SDK sets an int.
    """
    found = []
    for name, field_info in kind.model_fields.items():
        annotation = field_info.annotation
        if get_origin(annotation) is list:
            [annotation] = get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
            found.append(name)
            _models_in(annotation)
        if annotation is float:
            raise TypeError(name)
    return found
