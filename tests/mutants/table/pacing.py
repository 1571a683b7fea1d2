"""Mutants of the pacing."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "G1-granted-permit-lost",
        "Governor.abandon",
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
        "Limits.check_size",
        "tokens > bucket.rate * 60 + 1e-6",
        "tokens >= bucket.rate * 60 - 1e-6",
        "a request of exactly a minute's tokens can be sent",
        ("test_request_options.py::TestReservations",),
    ),
    Mutant(
        "G4-unsent-patience",
        "Failures.have_starved",
        "            patience = max(patience, UNSENT_PATIENCE)",
        "            pass",
        "a call that was never sent waits longer than one that was refused",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G5-no-jitter",
        "jittered",
        "return pause * (1 + rng.random() / 10)",
        "return pause",
        "callers that wake together would be refused together",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G6-probe-not-fewest-faults",
        "Queue.next",
        "            key=lambda ticket: (ticket.faults, ticket.number),",
        "            key=lambda ticket: ticket.number,",
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
        "Hold.begin",
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
        ("test_governor_rules.py",),
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
        "Governor.abandon",
        """\
        if turn.cancelled():
            self._queue.waiting -= 1""",
        """\
        if turn.cancelled():
            pass""",
        "a caller that gave up no longer waits",
        ("test_governor.py",),
    ),
    Mutant(
        "G12-outage-patience",
        "Failures.have_starved",
        "ticket.patience if self.is_refusing else OUTAGE_PATIENCE",
        "ticket.patience",
        "in an outage callers have the outage's patience, not that of a rate limit",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G13-sweep-rare",
        "Governor._after_failure",
        "if now - self._swept_at >= 1:",
        "if now - self._swept_at >= 30:",
        "callers whose patience has run out are ended within about a second",
        equivalent="while tickets wait, the watcher looks each second as well",
    ),
    Mutant(
        "G14-row-not-reset",
        "Failures.note_success",
        """\
        self.in_row = 0
""",
        "",
        "a success ends the row of failures",
        ("test_governor.py::TestRateLimitOfTheServer::test_learns_the_rate_without_headers",),
    ),
    Mutant(
        "G15-adaptive-all",
        "Governor._merge",
        "self._adaptive = any(pacing.adaptive",
        "self._adaptive = all(pacing.adaptive",
        "one engine that adapts makes the shared pace adapt",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G16-retry-after-kept-without-header",
        "Governor.settle_refusal",
        """\
            if told and not ("retry-after" in headers or "retry-after-ms" in headers):
                retry_after = None""",
        """\
            if False:
                retry_after = None""",
        "a wait that the headers do not tell is not taken from them",
        ("test_governor.py",),
    ),
    Mutant(
        "G17-debt-unbounded",
        "Bucket.take",
        "self.level = max(self.level - cost, deepest)",
        "self.level -= cost",
        "a debt counts for a minute at most, as the limit is a minute's",
        ("test_numbers_that_lie.py", "test_governor.py", "test_times_told.py"),
    ),
    Mutant(
        "G18-rate-of-zero",
        "Bucket.__init__",
        "self.rate = max(rate, LOWEST_RATE)",
        "self.rate = rate",
        "a wait must be finite, whatever the rate",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G19-rate-changed-to-zero",
        "Bucket.change",
        "self.rate = max(rate, LOWEST_RATE)",
        "self.rate = rate",
        "a wait must be finite, whatever the rate",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G20-large-request-waits-for-all",
        "Bucket.delay",
        "missing = min(cost, self.capacity) - self.level",
        "missing = cost - self.level",
        "a bucket that waits for all of a large request never admits it",
        ("test_governor.py",),
    ),
    Mutant(
        "G21-earlier-answer-believed",
        "ServerBucket.hear",
        """\
        if number <= self._told_by:
            return
""",
        "",
        "what a later request was told is newer",
        (
            "test_governor_rules.py",
            "test_governor.py",
        ),
    ),
    Mutant(
        "G22-epoch-as-duration",
        "parse_duration",
        "return seconds if seconds <= LONGEST_SECONDS else None",
        "return seconds",
        "an epoch time is no duration",
        ("test_numbers_that_lie.py", "test_times_told.py"),
    ),
    Mutant(
        "G23-day-limit-as-minute",
        "read_told",
        "if reset > 63 and remaining < limit:",
        "if False:",
        "a bucket that takes longer than a minute to fill is of a longer window",
        ("test_governor.py", "test_times_told.py"),
    ),
    Mutant(
        "G24-settle-without-pump",
        "Permit._settle",
        """\
            self._governor.admit_waiting(now)  # or nobody would admit the tickets that wait
            raise""",
        "            raise",
        "after an error while learning, the tickets that wait must still be admitted",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G25-given-back-twice",
        "Permit._settle",
        'raise RuntimeError("A permit was given back twice. Call one of its methods, once.")',
        "pass",
        "a permit that is given back twice would let one too many out",
        ("test_governor.py",),
    ),
    Mutant(
        "G27-blocked-by-own-limit",
        "Governor._is_blocked",
        "return ticket is not None and not self._limits.configured_delay(ticket, now)",
        "return ticket is not None",
        "tickets that wait for the user's own limit are not starved",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G28-blocked-though-out",
        "Governor._is_blocked",
        "if not self._failures.is_refusing or self._in_flight >= self._slots.allowed:",
        "if not self._failures.is_refusing:",
        "tickets that wait for slow answers are not starved",
        ("test_patience.py", "test_governor.py"),
    ),
    Mutant(
        "G29-grant-keeps-blocked",
        "Governor._grant",
        "self._granted_at, self._failures.blocked_since = now, None",
        "self._granted_at = now",
        "a granted permit shows that the queue is not blocked",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G30-outlier-counts",
        "TokenReservation.learn",
        "answer = min(answer, OUTLIER * self._usual_answer)",
        "pass",
        "one usage that lies says little of the next answer",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G31-at-rest-with-news",
        "Governor.is_at_rest",
        "if self._open_tickets or now - self._failures.failed_at < MEMORY_OF_FAILURES:",
        "if self._open_tickets:",
        "a governor that has bad news is kept, though nobody uses it",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G32-at-rest-used-up",
        "Limits.are_unused",
        """\
        return all(
            bucket.is_full(now)""",
        """\
        return True or all(
            bucket.is_full(now)""",
        "a governor that is dropped with an empty bucket would let a whole burst out again",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G33-day-rate-as-pace",
        "Governor._slow_down",
        "if before and before * LONGEST_TRUST >= 1 and self._learned.pace == math.inf:",
        "if before and self._learned.pace == math.inf:",
        "the rate of a day's window is no pace to begin with",
        ("test_patience.py", "test_times_told.py", "test_governor.py"),
    ),
    Mutant(
        "G34-reserve-unbounded",
        "Limits.reserve",
        "return tokens if configured is None else min(tokens, configured.rate * LONGEST_DEBT)",
        "return tokens",
        "no request is reckoned with more than a minute's tokens",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G35-cut-by-each-of-a-burst",
        "LearnedPace._learn",
        """\
        if request.number < self._first_number:
            return
""",
        "",
        "a burst of 429s cuts once",
        ("test_learned_pace.py",),
    ),
    Mutant(
        "G36-overload-cuts-each",
        "Slots.overload",
        "begins = number >= self._cut_number",
        "begins = True",
        "a burst of 503s cuts once",
        ("test_governor.py",),
    ),
    Mutant(
        "G37-mean-of-nothing",
        "TokenReservation.learn",
        "self._mean = max(1.0, mean + (answer - mean) / 20)",
        "self._mean = mean + (answer - mean) / 20",
        "answers of no tokens must not make requests free",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G38-pace-of-nothing",
        "LearnedPace._begin",
        "pace = max(pace, LEAST_PACE)",
        "pace = max(pace, 0.0001)",
        "a limit is tested again within ten seconds",
        ("test_learned_pace.py",),
    ),
    Mutant(
        "G40-order-of-arrival",
        "Ledger.settled",
        """\
            if not request.is_answered and now - request.at < grace:
                return
""",
        "",
        "refusals arrive sooner than answers, so outcomes count in the order of sending",
        ("test_learned_pace.py",),
    ),
    Mutant(
        "G41-own-share-unlearned",
        "LearnedPace._go_back",
        """\
        self.own.set_to(sent + self._trial.sent, refused + self._trial.refused, now)
""",
        "",
        "a share that is refused at any pace says nothing of the pace",
        ("test_learned_pace.py",),
    ),
    Mutant(
        "G42-row-in-a-burst",
        "LearnedPace._learn",
        "self._row += request.at - self._last_accepted_at >= ROW_SECONDS",
        "self._row += 1",
        "in a burst all but a few may be refused",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "G43-growth-by-answers",
        "LearnedPace.delay",
        """\
        if self._phase == "high":
            self._grow(now)
""",
        "",
        "the pace grows with time, whether there are answers or not",
        ("test_learned_pace.py",),
    ),
    Mutant(
        "G44-concurrency-as-pace",
        "ConcurrencyTest._decide",
        "self.is_limited = spans and sum(more for _, more in pairs) >= MOSTLY * len(pairs)",
        "self.is_limited = False",
        "refusals that go by how many requests are out are not a matter of the pace",
        ("test_learned_pace.py",),
    ),
    Mutant(
        "G45-told-rate-kept",
        "LearnedPace.start",
        'self._begin("high", TOLD * rate, now)',
        'self._begin("high", 2 * rate, now)',
        "a refusal shows that the rate which was told is too much",
        ("test_learned_pace.py",),
    ),
]
