"""The classes of the package's exceptions, as docs/errors.md describes them."""

from __future__ import annotations

import inspect

import pytest

from gptx_async import errors

NOT_CAUGHT_AS_EXCEPTION = {"RunCancelledError"}


def test_the_list_names_every_exception_of_the_module_in_order() -> None:
    defined = {
        name
        for name, member in vars(errors).items()
        if inspect.isclass(member) and member.__module__ == errors.__name__
    }
    assert errors.__all__ == sorted(defined)


@pytest.mark.parametrize("name", sorted({*errors.__all__} - NOT_CAUGHT_AS_EXCEPTION))
def test_an_exception_derives_from_the_base_class(name: str) -> None:
    with pytest.raises(errors.GPTXAsyncError):
        raise getattr(errors, name)("message")


@pytest.mark.parametrize("name", sorted(NOT_CAUGHT_AS_EXCEPTION))
def test_the_end_of_a_run_passes_through_except_exception(name: str) -> None:
    """symbolicai's retries and users' remedies catch Exception, and would go on."""
    error = getattr(errors, name)
    assert issubclass(error, BaseException)
    assert not issubclass(error, (Exception, errors.GPTXAsyncError))
