"""Mutants of one attempt over the wire."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "W1-set-cookie-plain",
        "_is_usual",
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
        ("test_route_state.py",),
    ),
    Mutant(
        "W4-extras-set",
        "_unset_extras",
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
        "_is_usual",
        'content_type.endswith("json") and not response.is_too_long',
        'content_type.endswith("json")',
        "headers longer than the sync client reads are an error",
        equivalent="the body of such an answer is not read, and no model is made of nothing",
    ),
    Mutant(
        "W6-cookie-not-popped",
        "Route._cookies",
        """\
        self.request.headers.pop(_COOKIE, None)
""",
        "",
        "an old header must not hide the cookies that are set by now",
        ("test_route_state.py",),
    ),
    Mutant(
        "W7-session-stale",
        "Route._current_exchange",
        "if self._exchange is None or self._exchange.session is not session:",
        "if self._exchange is None:",
        "a transport may make a new session, and the old one is closed then",
        ("test_route_state.py",),
    ),
    Mutant(
        "W8-proxy-ignored",
        "route_of",
        "not (transport.proxy or transport.uds)",
        "not transport.uds",
        "only httpx knows how to use a proxy",
        ("test_wire.py", "test_stand_in_client.py"),
    ),
    Mutant(
        "W9-no-request-id",
        "Route.send",
        """\
        model._request_id = response.headers.get("x-request-id")
""",
        "",
        "the answer carries the server's request id, as the SDK's does",
        ("test_wire.py",),
    ),
    Mutant(
        "W10-not-strict",
        "parse",
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
        ("test_wire.py::test_a_tracer_in_the_session_sees_each_call",),
    ),
    Mutant(
        "X1-connection-not-closed",
        "Exchange._post_on",
        """\
        finally:
            connection.close()  # does nothing if it was released
        return response""",
        "        return response",
        "a connection whose answer was not read to its end must not be used again",
        ("test_wire.py::test_a_call_has_the_same_outcome_as_by_the_sdk",),
    ),
    Mutant(
        "X2-never-released",
        "Exchange._post_on",
        "                body.on_eof(connection.release)",
        "                pass #",
        "a connection whose answer was read is used again",
        ("test_wire.py::test_a_connection_is_used_again_but_not_after_its_call_was_given_up",),
    ),
    Mutant(
        "X3-no-read-timeout",
        "Exchange._post_on",
        "read_timeout=self._timeout.sock_read,",
        "read_timeout=None,",
        "a server that stops answering is a time-out",
        (
            "test_exchange.py",
            "test_wire.py::test_an_attempt_that_is_late_is_the_same_error",
            "test_stand_in_client.py::test_a_timeout_is_a_timeout",
        ),
    ),
    Mutant(
        "X4-start-timeout-forgotten",
        "_write",
        """\
    protocol.transport.write(request)
    protocol.start_timeout()""",
        "    protocol.transport.write(request)",
        "the time for the answer runs from the moment the request is sent",
        ("test_wire.py::test_a_redirect_is_followed_as_by_the_sdk",),
    ),
    Mutant(
        "X5-interim-taken",
        "Exchange._post_on",
        "            while message.code < 200 and message.code != 101:",
        "            while False:",
        "an interim answer, 100 Continue, is not the answer",
        ("test_wire.py::test_an_odd_answer_has_the_same_outcome_as_by_the_sdk",),
    ),
    Mutant(
        "X6-content-length-characters",
        "Exchange._post_on",
        "(head, len(content), content)",
        "(head, len(content.decode(errors='replace')), content)",
        "a length is counted in bytes",
        ("test_wire.py::test_a_call_has_the_same_outcome_as_by_the_sdk",),
    ),
    Mutant(
        "W12-too-large-by-length",
        "read_bounded",
        "check_length(int(length) if length.isdecimal() else 0, most)",
        "pass",
        "a response that says to be too large is not read",
        ("test_response_size.py",),
    ),
    Mutant(
        "W13-encoded-unbounded",
        "read_bounded",
        """\
        size += len(block)
        check_length(size, most)
""",
        """\
        size += len(block)
""",
        "a response without a length is read within the bound as well",
        ("test_response_size.py",),
    ),
    Mutant(
        "W14-decoded-unbounded",
        "_collect",
        """\
        check_length(size, most)
""",
        """\
        pass
""",
        "a megabyte of gzip can become a gigabyte",
        ("test_response_size.py",),
    ),
    Mutant(
        "W15-large-decoded-on-loop",
        "decoded",
        "if not _collect(pieces, parts, LARGE_BYTES, most):",
        "if not _collect(pieces, parts, sys.maxsize, most):",
        "a large body that is decoded on the loop holds up every call",
        ("test_response_size.py",),
    ),
    Mutant(
        "W16-large-parsed-on-loop",
        "Route._model_of",
        "if len(content) <= LARGE_BYTES:",
        "if True:",
        "a large body that is parsed on the loop holds up every call",
        ("test_response_size.py",),
    ),
    Mutant(
        "W17-headers-not-restored",
        "restore_headers",
        "each.headers = each.extensions.pop(_HEADERS, each.headers)",
        "pass",
        "a response has the headers that came",
        ("test_response_size.py", "test_wire.py"),
    ),
    Mutant(
        "W18-short-address",
        "target_of",
        """\
    if address is not None:
""",
        """\
    if False:
""",
        "aiohttp refuses 127.1, which httpx sends to 127.0.0.1",
        ("test_target.py",),
    ),
    Mutant(
        "W19-empty-query",
        "target_of",
        'path = url.raw_path.decode("ascii")',
        'path = url.raw_path.decode("ascii").rstrip("?")',
        "a '?' with nothing after it is part of the request line",
        ("test_route_state.py",),
    ),
    Mutant(
        "W20-no-credentials",
        "add_credentials",
        "if url.username or url.password:",
        "if False:",
        "user and password of a URL are sent as a header",
        ("test_target.py",),
    ),
    Mutant(
        "W21-proxy-headers-dropped",
        "SessionAsGiven.request",
        'if options.get("proxy") and target.scheme == "http":',
        "if False:",
        "a plain proxy is given its credentials with each request",
        ("test_environment.py", "test_target.py"),
    ),
    Mutant(
        "W22-transport-closed-with-client",
        "Connections._transport",
        """\
        transport.aclose = _leave_open
""",
        "",
        "a client is closed, and others send by its transport",
        ("test_route_state.py",),
    ),
    Mutant(
        "W23-ca-file-by-name",
        "Environment.read",
        "state = status.st_size, status.st_mtime_ns",
        "state = None",
        "another file may take the name of the certificates",
        ("test_environment.py",),
    ),
    Mutant(
        "W24-unasked-data-used",
        "Connector._get",
        "if connection.protocol is not None and _is_idle(connection.protocol):",
        "if connection.protocol is not None:",
        "aiohttp would take what nobody asked for as the next answer",
        ("test_stand_in_client.py", "test_wire.py"),
    ),
    Mutant(
        "W25-used-client-dropped",
        "IdleCache.take",
        """\
            self._idle.pop(key, None)
""",
        """\
            pass
""",
        "what is in use is never dropped",
        ("test_idle_cache.py",),
    ),
    Mutant(
        "W43-longer-time-waited-for",
        "IdleCache.give_back",
        "if self._timer is not None and self._timer.when() > due:",
        "if False:",
        "a client that may be unused for a second is not kept for another's minute",
        ("test_idle_cache.py",),
    ),
    Mutant(
        "W26-idle-never-dropped",
        "IdleCache._sweep",
        """\
                if self._may_drop(lease.resource):
                    self._drop(lease)
""",
        """\
                if False:
                    pass
""",
        "what was unused for long enough is closed",
        ("test_idle_cache.py",),
    ),
    Mutant(
        "W27-no-bound",
        "IdleCache.give_back",
        """\
            self._drop_longest_unused()
""",
        """\
            pass
""",
        "a process that uses a new key for each call must not keep a client for each",
        ("test_idle_cache.py",),
    ),
    Mutant(
        "W28-news-dropped",
        "IdleCache._drop_longest_unused",
        "if self._may_drop(lease.resource):",
        "if True:",
        "a governor that knows of bad news is kept",
        ("test_idle_cache.py",),
    ),
    Mutant(
        "W29-traced-pool-shared",
        "ClientCache._build",
        "key = settings.environment, aiohttp.ClientSession.__init__",
        "key = settings.environment",
        "a package that traces aiohttp patches the constructor: an older pool is not traced",
        ("test_wire.py", "test_environment.py", "test_patched_sync_client.py"),
    ),
    Mutant(
        "W30-timer-at-once",
        "_Timeout.expire",
        "is_late = self._turns or self._loop.time() - self._when > LATE_SECONDS",
        "is_late = False",
        "what came while the process stood still counts before the timeout",
        ("test_late_timers.py",),
    ),
    Mutant(
        "W31-cancelled-timeout-fires",
        "_Timeout.expire",
        """\
        if self.handle.cancelled():
            return
""",
        "",
        "a timeout that was cancelled while it was deferred must not fire",
        ("test_late_timers.py",),
    ),
    Mutant(
        "W32-own-timers-deferred",
        "_is_timeout",
        'return module.partition(".")[0] != _OWN_PACKAGE',
        "return True",
        "the pacing's own timers are on time",
        ("test_late_timers.py",),
    ),
    Mutant(
        "W34-loop-by-frozen-clock",
        "let_run",
        "loop.time = seconds  # type: ignore[method-assign]",
        "pass",
        "timers must fire within a frozen time",
        ("test_frozen_time.py",),
    ),
    Mutant(
        "W35-double-ignored",
        "_SyncClientSteps.are_patched",
        "if name in vars(owner) or self._has_own_post(owner):",
        "if name in vars(owner):",
        "a resource keeps the method that its client had when it was first used",
        ("test_patched_sync_client.py",),
    ),
    Mutant(
        "W36-method-set-on-object",
        "_SyncClientSteps._has_class_methods_only",
        """\
            self._names.isdisjoint(vars(client))
""",
        """\
            True
""",
        "a test may set a method on the client itself",
        ("test_stand_in_attributes.py",),
    ),
    Mutant(
        "W37-tracer-is-a-double",
        "_SyncClientSteps._is_patched_on_both",
        "return is_met and _has_same_patch(step.twin, step.twin_name, patch)",
        "return is_met and False",
        "a tracer wraps both sides, and no call may be made one after the other for it",
        ("test_patched_sync_client.py",),
    ),
    Mutant(
        "W38-mock-beside-tracer",
        "_has_same_patch",
        "return not is_original(kind, twin) and is_double(patch) == is_double(twin)",
        "return not is_original(kind, twin)",
        "beside a tracer a mock on the sync side counts",
        ("test_patched_sync_client.py",),
    ),
    Mutant(
        "W39-route-after-patch",
        "Client._route",
        "if not self._patches.are_none():",
        "if False:",
        "a package that patches a method later has to see each call",
        ("test_wire.py",),
    ),
    Mutant(
        "W40-redirect-from-hand",
        "_send",
        """\
    current.replay = None  # a redirect is a new request
""",
        "",
        "what is in hand answers one request, and a redirect is another",
        ("test_wire.py",),
    ),
    Mutant(
        "W41-late-sent-again",
        "_send_in_time",
        """\
    if current.replay is not None and current.replay.is_late:
        raise httpx_error(type(request), "ReadTimeout", current.replay.error)
""",
        "",
        "an attempt whose time is over is not sent a second time",
        ("test_wire.py", "test_fast_path.py"),
    ),
    Mutant(
        "W44-no-start",
        "Ramp.turn",
        "if self._opening < self.limit and not self._waiting:",
        "if True:",
        "a server's queue of connections that it has not accepted yet is short",
        (
            "test_ramp.py::test_the_first_waiting_call_looks_into_the_pool_when_a_connection_is_returned",
        ),
    ),
    Mutant(
        "W45-cut-for-each",
        "Ramp._cut",
        "if began > self._cut_at:",
        "if True:",
        "connections that were begun together are dropped together, and halve the limit once",
        ("test_ramp.py::test_the_limit_is_halved_once_for_connections_that_were_begun_together",),
    ),
    Mutant(
        "W46-cancelled-turn-lost",
        "Ramp.turn",
        """\
            if came and turn.result():  # just before the cancellation
                self._leave()
""",
        "",
        "a turn that came just before the cancellation goes to the next",
        ("test_ramp.py::test_a_turn_that_is_cancelled_goes_to_the_next",),
    ),
    Mutant(
        "W47-pool-not-looked-at",
        "Ramp.given_back",
        "asyncio.get_running_loop().call_soon(self._wake)",
        "pass",
        "the first who waits may have the connection that was given back",
        (
            "test_ramp.py::test_the_first_waiting_call_looks_into_the_pool_when_a_connection_is_returned",
        ),
    ),
    Mutant(
        "W48-distant-server-is-slow",
        "Ramp.opened",
        "if took < max(DROPPED_SECONDS, SLOWER * self._quickest):",
        "if took < DROPPED_SECONDS:",
        "a connection to a distant server takes long without being dropped",
        ("test_ramp.py::test_slow_connections_to_a_distant_server_do_not",),
    ),
    Mutant(
        "W49-sent-again-for-ever",
        "may_go_again",
        """\
        and protocol.uses > 1
""",
        "",
        "only a connection that was used before may have been closed while it was idle",
        ("test_connector.py",),
    ),
    Mutant(
        "W50-half-answered-sent-again",
        "may_go_again",
        """\
        and not protocol.has_received
""",
        "",
        "what was answered in part was received, and may have been paid",
        ("test_connector.py",),
    ),
    Mutant(
        "W51-late-sent-again",
        "may_go_again",
        """\
        and not isinstance(error, aiohttp.ServerTimeoutError)
""",
        "",
        "a request that is not answered in time may be answered later",
        ("test_connector.py",),
    ),
    Mutant(
        "W52-unread-connection-used",
        "_is_idle",
        "return not poll.poll(0)",
        "return True",
        "what is unread on a connection would be taken for the next answer",
        ("test_connector.py",),
    ),
    Mutant(
        "W53-body-that-is-an-answer",
        "error_in",
        """\
    if error is None or status is None:
        return None
""",
        """\
    if error is None:
        return None
    status = status or 500
""",
        "an error of another status is not tried again",
        ("test_no_completion.py",),
    ),
    Mutant(
        "W54-error-in-a-choice",
        "_error_of",
        'for each in (response, *(getattr(response, "choices", None) or ())):',
        "for each in (response,):",
        "some providers put the error into a choice",
        ("test_no_completion.py",),
    ),
]
