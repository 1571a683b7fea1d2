"""Mutants of one attempt over the wire."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "W1-set-cookie-plain",
        "_is_plain",
        ' or "set-cookie" in headers:',
        ":",
        "cookies are for the SDK's client to keep",
        ("test_wire.py",),
    ),
    Mutant(
        "W2-no-retry-header",
        "Route._changed_headers",
        'if retries and self.headers.get(_RETRIES) == "0":',
        "if False:",
        "the SDK counts retries in a header, unless the caller has set it",
        ("test_wire.py",),
    ),
    Mutant(
        "W3-closed-client-open",
        "Route.is_open",
        """\
        if self.http_client.is_closed:
            return False
""",
        "",
        "a closed client refuses, as the SDK's does",
        ("test_wire.py", "test_bridge.py"),
    ),
    Mutant(
        "W4-extras-set",
        "_forget_extras",
        """\
    if model.__pydantic_extra__:
        model.__pydantic_fields_set__.difference_update(model.__pydantic_extra__)
""",
        "",
        "fields unknown to the class do not count as set: so does the SDK",
        ("test_wire.py",),
    ),
    Mutant(
        "W5-too-long-plain",
        "_is_plain",
        'content_type.endswith("json") and not answered.is_too_long',
        'content_type.endswith("json")',
        "headers longer than the sync client reads are an error",
        ("test_wire.py", "test_hostile_server.py"),
    ),
    Mutant(
        "W6-cookie-not-popped",
        "Route._cookies",
        """\
        self.request.headers.pop(_COOKIE, None)
""",
        "",
        "an old header must not hide the cookies that are set by now",
        ("test_wire.py",),
    ),
    Mutant(
        "W7-session-stale",
        "Route._exchange_now",
        "if self._exchange is None or self._exchange.session is not session:",
        "if self._exchange is None:",
        "a transport may make a new session, and the old one is closed then",
        ("test_wire.py", "test_bridge.py"),
    ),
    Mutant(
        "W8-proxy-ignored",
        "route_of",
        "not (transport.proxy or transport.uds)",
        "not transport.uds",
        "only httpx knows how to use a proxy",
        ("test_wire.py", "test_bridge.py"),
    ),
    Mutant(
        "W9-no-request-id",
        "Route.send",
        """\
        answer._request_id = answered.headers.get("x-request-id")
""",
        "",
        "the answer carries the server's request id, as the SDK's does",
        ("test_wire.py",),
    ),
    Mutant(
        "W10-not-strict",
        "answer_of",
        "cast_to.model_validate_json(body, strict=True)",
        "cast_to.model_validate_json(body)",
        "what does not fit the class as it is goes to the SDK, which converts nothing",
        ("test_wire.py",),
    ),
    Mutant(
        "W11-trace-configs-ignored",
        "Route.is_open",
        'put_in = [*session.trace_configs, *getattr(session, "_middlewares", ())]',
        'put_in = [*getattr(session, "_middlewares", ())]',
        "trace configurations, put in by a package, must see each call",
        ("test_wire.py::test_what_a_package_has_put_into_the_session_sees_each_call",),
    ),
    Mutant(
        "X1-connection-not-closed",
        "Exchange.post",
        """\
        finally:
            connection.close()  # unless it was released
        return answered""",
        "        return answered",
        "a connection whose answer was not read to its end must not be used again",
        ("test_wire.py::test_a_call_comes_to_the_same_as_by_the_sdk",),
    ),
    Mutant(
        "X2-never-released",
        "Exchange.post",
        "                body.on_eof(connection.release)",
        "                pass #",
        "a connection whose answer was read is used again",
        ("test_wire.py",),
    ),
    Mutant(
        "X3-no-read-timeout",
        "Exchange.post",
        "read_timeout=self._timeout.sock_read,",
        "read_timeout=None,",
        "a server that stops answering is a time-out",
        ("test_bridge.py::test_a_timeout_is_a_timeout",),
    ),
    Mutant(
        "X4-start-timeout-forgotten",
        "_write",
        """\
    protocol.transport.write(request)
    protocol.start_timeout()""",
        "    protocol.transport.write(request)",
        "the time for the answer runs from the moment the request is sent",
        ("test_wire.py", "test_bridge.py", "test_exchange.py"),
    ),
    Mutant(
        "X5-interim-taken",
        "Exchange.post",
        "            while message.code < 200 and message.code != 101:",
        "            while False:",
        "an interim answer, 100 Continue, is not the answer",
        ("test_wire.py",),
    ),
    Mutant(
        "X6-content-length-characters",
        "Exchange.post",
        "(head, len(content), content)",
        "(head, len(content.decode(errors='replace')), content)",
        "a length is counted in bytes",
        ("test_wire.py",),
    ),
]
