"""The identity of a job and of an item: digests that are the same in every process.

They are not digests of pickle's bytes, which depend on which strings in a value are the same object
and on the order of a set.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .dataset import is_symbol

__all__ = ["declared_class", "differences", "digest_of", "identity_of", "name_of"]

_SCALARS = (str, int, float, bool, complex, bytes, type(None))
_ATTRIBUTE = "attribute "

_HAS_DOCSTRING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)

_WORDS = {
    "expression": "its expression is {there}, not {here}",
    "model": "its model is {there}, not {here}",
    "source": "the code of the expression differs",
}
"""How messages describe parts that differ. All other parts are values, described by their name."""


def identity_of(expression: Any) -> dict[str, str]:
    """Return the parts that distinguish a job, by name: its expression, and the model.

    The parts are the name of the expression; a digest of its code, without comments and
    docstrings; digests of the plain values that it uses (attributes, arguments of a partial,
    defaults, variables of an enclosing function, and module constants with names in capitals); and
    the model of the registered engine. The functions that the expression calls are not included.
    """
    parts = {"expression": name_of(expression)}
    for name, value in _values_of(expression):
        with contextlib.suppress(RecursionError):  # it contains itself
            if _is_plain(value):
                parts[name] = digest_of(value)
    parts["source"] = digest_of(_source_of(expression))
    model = _model()
    if model is not None:
        parts["model"] = model
    return parts


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return a phrase for each part in which two identities differ.

    The model may be unknown in one run, and an instance may get attributes while it works. A part
    of these kinds that only one identity has is not a difference.
    """
    return [
        _WORDS.get(part, "{part} differs").format(
            part=part, there=there.get(part), here=here.get(part)
        )
        for part in {**there, **here}
        if there.get(part) != here.get(part)
        and not (_may_be_unknown(part) and (part not in there or part not in here))
    ]


def _may_be_unknown(part: str) -> bool:
    return part == "model" or part.startswith(_ATTRIBUTE)


def name_of(expression: Any) -> str:
    """Return the full name of a function, a class, or the class of an instance."""
    function = _inner(expression)
    if not hasattr(function, "__qualname__"):
        function = declared_class(type(function))
    return f"{getattr(function, '__module__', None)}.{function.__qualname__}"


def declared_class(kind: type) -> type:
    """Return a class as its module defines it; symbolicai subclasses it for each instance."""
    base = kind.__bases__[0] if kind.__bases__ else kind
    if (base.__name__, base.__module__) != (kind.__name__, kind.__module__):
        return kind
    return declared_class(base)


def digest_of(value: object) -> str:
    """Return a digest of the content of a value.

    Raises:
        Exception: The value cannot be pickled, or contains itself.
    """
    hashed = hashlib.blake2b(digest_size=16)
    _add(hashed.update, value)
    return hashed.hexdigest()


def _add(update: Callable[[bytes], None], value: Any) -> None:
    """Add a value to a digest: its type and its parts."""
    kind = type(value)
    if kind in _SCALARS:
        data = value if kind is bytes else _text_of(value).encode(errors="surrogatepass")
        update(b"%s:%d:%s" % (kind.__name__.encode(), len(data), data))
    elif kind is list or kind is tuple:
        update(b"%s:%d:" % (kind.__name__.encode(), len(value)))
        for each in value:
            _add(update, each)
    elif kind is dict:
        _add_unordered(update, b"dict", value.items())
    elif kind is set or kind is frozenset:
        _add_unordered(update, kind.__name__.encode(), value)
    elif isinstance(value, _NAMED):
        update(b"name:%s;" % name_of(value).encode())
    else:
        _add_reduced(update, value)


def _text_of(value: object) -> str:
    if isinstance(value, int):
        return f"{value:x}"  # hexadecimal has no limit of digits
    return value if isinstance(value, str) else repr(value)


def _add_unordered(update: Callable[[bytes], None], kind: bytes, values: Any) -> None:
    update(b"%s:%s;" % (kind, "".join(sorted(map(digest_of, values))).encode()))


def _add_reduced(update: Callable[[bytes], None], value: Any) -> None:
    """Add an object by the parts that pickle would store."""
    update(b"object:%s;" % name_of(type(value)).encode())
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):  # the name of a global object
        _add(update, reduced)
        return
    made_by, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    if is_symbol(value):
        state = _lasting(state)
    for part in (made_by, arguments, state, *map(_listed, (items, pairs))):
        _add(update, part)


def _lasting(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out the process-wide context of a Symbol, which every query may change."""
    return {name: value for name, value in state.items() if name != "_dynamic_context"}


def _listed(parts: Any) -> list[Any] | None:
    return None if parts is None else [*parts]


def _is_plain(value: Any) -> bool:
    """Return whether a value consists of plain data only, and so is the same in every process."""
    kind = type(value)
    if kind is dict:
        return all(map(_is_plain, value.items()))
    if kind in (list, tuple, set, frozenset):
        return all(map(_is_plain, value))
    return kind in _SCALARS


def _inner(expression: Any) -> Any:
    """Return the function or object inside a partial or a bound method."""
    while True:
        if isinstance(expression, functools.partial):
            expression = expression.func
        elif inspect.ismethod(expression):
            expression = expression.__func__
        else:
            return expression


def _values_of(expression: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values that an expression uses, each with a name that messages can show."""
    if isinstance(expression, functools.partial):
        yield "arguments of the partial", [expression.args, expression.keywords]
        yield from _values_of(expression.func)
    elif inspect.ismethod(expression):
        yield from _values_of(expression.__self__)
        yield from _values_of_function(expression.__func__)
    elif inspect.isfunction(expression):
        yield from _values_of_function(expression)
    elif isinstance(expression, type):
        for kind in _own_classes(expression):
            for function in _functions_of(kind):
                yield from _values_of_function(function)
    elif not inspect.isbuiltin(expression):
        yield from _values_of(declared_class(type(expression)))
        yield from _attributes_of(expression)


def _attributes_of(instance: Any) -> Iterator[tuple[str, Any]]:
    state: object = None
    with contextlib.suppress(Exception):  # some instances cannot be pickled
        state = instance.__getstate__()  # symbolicai leaves out what belongs to one run
    for name, value in _lasting(state).items() if isinstance(state, dict) else ():
        yield f"{_ATTRIBUTE}{name!r}", value


def _values_of_function(function: Any) -> Iterator[tuple[str, Any]]:
    name = function.__qualname__
    if function.__defaults__ or function.__kwdefaults__:
        yield f"defaults of {name}", [function.__defaults__, function.__kwdefaults__]
    for variable, cell in zip(
        function.__code__.co_freevars, function.__closure__ or (), strict=True
    ):
        try:
            yield f"variable {variable!r} of {name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for constant in _names_in(function.__code__):
        if constant.isupper() and constant in function.__globals__:
            yield f"constant {constant}", function.__globals__[constant]


def _names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _functions_of(kind: type) -> Iterator[types.FunctionType]:
    for value in vars(kind).values():
        value = getattr(value, "__func__", value)  # unwrap a staticmethod or a classmethod
        if inspect.isfunction(value):
            yield value


def _own_classes(kind: type) -> list[type]:
    """Return a class and its bases from the same top-level package."""
    package = kind.__module__.partition(".")[0]
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] == package]


def _source_of(expression: Any) -> Any:
    """Return the code of a function, or of a class and its bases, without comments and docstrings.

    This is the source if it is available, because bytecode differs between versions of Python.
    """
    function = _inner(expression)
    if isinstance(function, types.FunctionType):
        return _code_of(function, lambda: _parts_of(function.__code__))
    kinds = _own_classes(function if isinstance(function, type) else declared_class(type(function)))
    return [_code_of(kind, functools.partial(_parts_of_class, kind)) for kind in kinds]


def _code_of(thing: Any, otherwise: Callable[[], Any]) -> Any:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (
        OSError,
        TypeError,
        SyntaxError,
    ):  # no source, or a lambda within a statement
        return otherwise()
    if getattr(thing, "__name__", None) == "<lambda>":
        lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        return ast.unparse(lambdas[0]) if len(lambdas) == 1 else otherwise()
    return ast.unparse(_without_docstrings(tree))


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, _HAS_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _parts_of_class(kind: type) -> list[Any]:
    return [_parts_of(function.__code__) for function in _functions_of(kind)]


def _parts_of(code: types.CodeType) -> list[Any]:
    constants = [
        _parts_of(each) if isinstance(each, types.CodeType) else each for each in code.co_consts
    ]
    if _has_docstring(code):
        constants[0] = None
    return [code.co_code, code.co_names, constants]


def _has_docstring(code: types.CodeType) -> bool:
    """Return whether the first constant of a code is a docstring.

    Since Python 3.13 a flag says so (CO_HAS_DOCSTRING,
    https://docs.python.org/3/library/inspect.html). Before, the first constant of each function
    except comprehensions is reserved for the docstring.
    """
    if not code.co_consts or not isinstance(code.co_consts[0], str):
        return False
    if sys.version_info >= (3, 13):
        return bool(code.co_flags & 0x4000000)
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")


def _model() -> str | None:
    """Return the model of the registered engine, or None if there is none."""
    functional = sys.modules.get("symai.functional")
    if functional is None:
        return None
    model = getattr(functional.EngineRepository.list().get("neurosymbolic"), "model", None)
    return model if isinstance(model, str) else None
