"""What tests of an engine share: its key and model, arguments, and replies of the fake server."""

from __future__ import annotations

import re
from typing import Any

from symai import Expression, Symbol
from symai.core import Argument

from gptx_async.testing import HTTPFault

__all__ = ["KEY", "MODEL", "TwoSteps", "argument", "echo", "echo_unless_bad", "user_text"]

KEY, MODEL = "sk-of-the-tests", "gpt-4o-mini"


def argument(text: str, **kwargs: Any) -> Any:
    """An argument as symbolicai's decorators build it, not prepared."""
    argument = Argument((), kwargs, {"prompt": "Answer."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    return argument


def user_text(body: dict[str, Any]) -> str:
    """The text that was asked about, without what `Symbol.query` puts around it."""
    content = (body.get("messages") or body["input"])[-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return re.sub(r"\AData:\n(.*)\nContext: .*\Z", r"\1", text, flags=re.DOTALL)


def echo(request: Any) -> str:
    return f"answer to {user_text(request.body)}"


def echo_unless_bad(request: Any) -> str | HTTPFault:
    """Answer as `echo` does, and reject texts that begin with 'bad' with status 400."""
    return HTTPFault(400) if user_text(request.body).startswith("bad") else echo(request)


class TwoSteps(Expression):  # type: ignore[misc] # symbolicai ships no types
    """Asks twice, the second time about the first answer."""

    def forward(self, input: str, **_kwargs: Any) -> str:  # noqa: A002 - the scheduler's name
        first = str(Symbol(input).query("Answer."))
        return str(Symbol(first).query("Answer."))
