"""Mutants of the pacing."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "G1-granted-permit-lost",
        "Governor._abandon",
        """\
        elif isinstance(permit := turn.result(), Permit):
            permit.release()""",
        """\
        elif False:
            pass""",
        "a permit that was granted just as its caller gave up must not be lost",
        ("test_governor.py",),
    ),
    Mutant(
        "G2-max-of-pacings",
        "Governor._merge",
        "self._slots.most = min(pacing",
        "self._slots.most = max(pacing",
        "where several engines have different limits, the lowest holds",
        ("test_governor.py",),
    ),
    Mutant(
        "G3-size-off-by-one",
        "Governor._check_size",
        "tokens > bucket.rate * 60 + 1e-6",
        "tokens >= bucket.rate * 60 - 1e-6",
        "a request of exactly a minute's tokens can be sent",
        ("test_request_terms.py::TestReservations",),
    ),
    Mutant(
        "G4-unsent-patience",
        "Governor._is_starved",
        "            patience = max(patience, UNSENT_PATIENCE)",
        "            pass",
        "a call that was never sent waits longer than one that was refused",
        ("test_governor.py", "test_request.py"),
    ),
    Mutant(
        "G5-no-jitter",
        "Governor._jittered",
        "return pause * (1 + self._rng.random() / 10)",
        "return pause",
        "callers that wake together would be refused together",
        ("test_governor.py", "test_request.py"),
    ),
    Mutant(
        "G6-probe-not-fewest-faults",
        "Governor._next",
        "                key=lambda ticket: (ticket._faults, ticket._number),",
        "                key=lambda ticket: ticket._number,",
        "a server is tested with the request that has the fewest faults of its own",
        ("test_governor.py::TestOutage::test_loses_no_call_to_half_a_minute",),
    ),
    Mutant(
        "G7-timer-keeps-later",
        "Governor._wake_at",
        """\
            if self._timer.when() <= at:
                return  # it will look again
            self._timer.cancel()""",
        "            return",
        "an earlier moment replaces a later timer, or a caller waits too long",
        ("test_governor.py::TestOutage::test_resumes_spread_out",),
    ),
    Mutant(
        "G8-pause-uncapped",
        "Governor._lengthen_row",
        "pause = min(retry_after, LONGEST_PAUSE)",
        "pause = retry_after",
        "a long Retry-After must not stop everything for longer than the longest pause",
        ("test_governor.py",),
    ),
    Mutant(
        "G9-alone-held",
        "Governor._held",
        "        if not hold.by_refusals and self._open_tickets <= 1:",
        "        if False:",
        "a call that is alone is not held back by an outage of nobody else",
        ("test_governor.py", "test_request.py"),
    ),
    Mutant(
        "G10-is-probe-also-refusals",
        "Governor._grant",
        "is_probe = self._hold is not None and not self._hold.by_refusals",
        "is_probe = self._hold is not None",
        "only an attempt during an outage is a test that costs no retry",
        ("test_governor.py",),
    ),
    Mutant(
        "G11-waiting-not-counted-down",
        "Governor._abandon",
        """\
        if turn.cancelled():
            self._waiting -= 1""",
        """\
        if turn.cancelled():
            pass""",
        "a caller that gave up no longer waits",
        ("test_governor.py",),
    ),
    Mutant(
        "G12-outage-patience",
        "Governor._is_starved",
        "ticket._patience if self._is_refusing else OUTAGE_PATIENCE",
        "ticket._patience",
        "in an outage callers have the outage's patience, not that of a rate limit",
        ("test_governor.py", "test_request.py"),
    ),
    Mutant(
        "G13-sweep-rare",
        "Governor._after_failure",
        "now - self._swept_at >= 1 and",
        "now - self._swept_at >= 30 and",
        "callers whose patience has run out are ended within about a second",
        ("test_governor.py", "test_request.py"),
    ),
    Mutant(
        "G14-row-not-reset",
        "Governor._succeeded",
        """\
        self._failures_in_row = 0
        self._failing_since = None""",
        "        self._failing_since = None",
        "a success ends the row of failures",
        ("test_governor.py::TestRateLimitOfTheServer::test_learns_the_rate_when_nobody_tells",),
    ),
    Mutant(
        "G15-adaptive-all",
        "Governor._merge",
        "self._adaptive = any(pacing.adaptive",
        "self._adaptive = all(pacing.adaptive",
        "one engine that adapts makes the shared pace adapt",
        ("test_governor.py", "test_request.py"),
    ),
    Mutant(
        "G16-retry-after-kept-without-header",
        "Governor._refused",
        """\
            if told and not ("retry-after" in headers or "retry-after-ms" in headers):
                retry_after = None""",
        """\
            if False:
                retry_after = None""",
        "a wait that the headers do not tell is not taken from them",
        ("test_governor.py",),
    ),
]
