"""Classify errors for statistics, events and spans, without using their text."""

from __future__ import annotations

from .. import errors

__all__ = ["failure_kind", "request_id_of", "status_of"]

MAX_REQUEST_ID = 200
"""The longest request id that is logged, in characters: it comes from outside."""

_KINDS = {
    400: "bad_request",
    401: "authentication",
    403: "permission",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    422: "unprocessable",
    429: "rate_limit",
}

_CLASSES: dict[str, type[BaseException]] = {
    "cost_limit": errors.CostLimitError,
    "configuration": errors.ConfigurationError,
    "service": errors.ServiceError,
    "timeout": TimeoutError,
}


def failure_kind(error: BaseException) -> str:
    """Return the name under which `Stats.failures` counts an error."""
    status = status_of(error)
    if status is not None:
        if status == 429 and getattr(error, "code", None) == "insufficient_quota":
            return "insufficient_quota"
        return _KINDS.get(status, f"status_{status}")
    for kind, classes in _CLASSES.items():
        if isinstance(error, classes):
            return kind
    names = {base.__name__ for base in type(error).__mro__}
    if "APITimeoutError" in names:  # in the SDK it derives from APIConnectionError
        return "timeout"
    return "connection" if "APIConnectionError" in names else type(error).__name__


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error of the SDK, or None."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def request_id_of(holder: object) -> str | None:
    """Return the server's request id, from an error or an answer of the SDK, or None."""
    for name in ("request_id", "_request_id"):
        if isinstance(value := getattr(holder, name, None), str):
            return value[:MAX_REQUEST_ID]
    return None
