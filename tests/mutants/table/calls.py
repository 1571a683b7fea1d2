"""Mutants of one call over all its attempts."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "R1-no-doubling",
        "Budget.wait",
        "FIRST_WAIT * 2 ** min(self._waits.get(cause, 0), 16)",
        "FIRST_WAIT",
        "waits double, as in the SDK",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "R2-one-retry-less",
        "Budget.is_spent",
        "return self._retries_left < 0",
        "return self._retries_left <= 0",
        "`max_retries` counts retries, not attempts",
        ("test_retry.py",),
    ),
    Mutant(
        "R3-naive-date-local",
        "_read_date",
        "when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)",
        "when.astimezone(UTC)",
        "a date without a zone is UTC (RFC 9110, 5.6.7)",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "R4-copy-loses-cause",
        "copy_of",
        """\
    copy.__cause__ = error.__cause__
""",
        "",
        "a copied error keeps its cause",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "R5-timeout-is-outage",
        "is_of_outage",
        "return lost and not isinstance(error, openai.APITimeoutError)",
        "return lost",
        "a time-out says nothing about whether the server is there",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "R6-504-reachable",
        "UNREACHABLE",
        "UNREACHABLE = frozenset({502, 504})",
        "UNREACHABLE = frozenset({502})",
        "504 is a gateway that does not reach its server",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "R7-probe-costs-retry",
        "Budget.is_spent",
        """\
        if not self.is_free:
            self._retries_left -= 1""",
        "        self._retries_left -= 1",
        "testing a server that is down costs none of a call's retries",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "R8-patience-from-last-429",
        "Budget.wait",
        "if cause is Cause.RATE_LIMIT and self._first_429 is None:",
        "if cause is Cause.RATE_LIMIT:",
        "the patience runs from the first 429, or it would never run out",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "R9-529-not-overload",
        "OVERLOADED",
        "OVERLOADED = frozenset({503, 529})",
        "OVERLOADED = frozenset({503})",
        "529 means overload at some providers",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "R10-wait-uncapped",
        "Budget.wait",
        "2 ** min(self._waits.get(cause, 0), 16), LONGEST_WAIT)",
        "2 ** min(self._waits.get(cause, 0), 16), 600.0)",
        "waits are bounded, as in the SDK",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "Q1-sending-keeps-permit",
        "Request._attempt",
        """\
        except BaseException:
            permit.release()
            raise""",
        """\
        except BaseException:
            raise""",
        "a permit whose request is not sent must be given back",
        ("test_request_options.py::TestCosts",),
    ),
    Mutant(
        "Q2-ticket-not-closed",
        "Request._send",
        """\
        finally:
            ticket.close()
        raise failed""",
        "        raise failed",
        "a ticket that stays open counts as a caller",
        (
            "test_request.py::TestRetries::test_a_call_alone_fails_after_its_retries_also_when_the_server_has_answered_before",
        ),
    ),
    Mutant(
        "Q3-ends-all-batches",
        "Request._note_refusal",
        "destination.end_unsent(lambda other: other._refusals is refusals, error)",
        "destination.end_unsent(lambda other: True, error)",
        "a refused key ends the requests of its batch, not those of others",
        ("test_request.py::TestRefusals::test_a_query_of_another_batch_is_not_ended",),
    ),
    Mutant(
        "Q4-cost-ends-other-engines",
        "Request._end_unsent_at_cost",
        "destination.end_unsent(lambda other: other._options.recorder is recorder, error)",
        "destination.end_unsent(lambda other: True, error)",
        "`max_cost` is one engine's, and ends that engine's requests only",
        ("test_request_options.py::TestCosts",),
    ),
    Mutant(
        "Q5-n-ignored",
        "most_answer_tokens",
        "most = limit * (answers if isinstance(answers, int) and answers > 0 else 1)",
        "most = limit",
        "`n` answers use `n` times the tokens",
        ("test_request_options.py::TestReservations",),
    ),
    Mutant(
        "Q6-starved-by-others-error",
        "Request._send",
        "failed = self._last_error or copy_of(starved.error)",
        "failed = copy_of(starved.error)",
        "a call that was refused itself raises its own last error",
        ("test_request_options.py::TestErrors",),
    ),
    Mutant(
        "Q7-retry-count-off",
        "Request._attempt",
        "self.record.attempt - 1,",
        "self.record.attempt,",
        "the count of retries that is sent starts at 0",
        (
            "test_request.py::TestRetries::test_a_fault_is_retried_max_retries_times_by_one_layer_only",
        ),
    ),
    Mutant(
        "Q8-own-cancel-swallowed",
        "Request._turn",
        "if self.ended_by is None or task.uncancel():",
        "if self.ended_by is None:",
        "a call that its own caller cancels as well is cancelled",
        ("test_request_options.py::TestErrors",),
    ),
    Mutant(
        "Q9-refusal-raised-itself",
        "Request._turn",
        "            raise copy_of(refusal)",
        "            raise refusal",
        "an error raised to several callers would grow with each",
        ("test_request_options.py::TestErrors",),
    ),
    Mutant(
        "Q10-estimate-floor",
        "estimate_tokens",
        "return -(-characters // CHARACTERS_PER_TOKEN)",
        "return characters // CHARACTERS_PER_TOKEN",
        "an estimate is rounded up, or short prompts cost nothing",
        ("test_token_estimate.py",),
    ),
    Mutant(
        "Q11-ended-by-raised-itself",
        "Request._turn",
        "        raise copy_of(self.ended_by)",
        "        raise self.ended_by",
        "an error raised to several callers would grow with each",
        (
            "test_request_options.py::TestCosts",
            "test_request_options.py::TestErrors",
        ),
    ),
    Mutant(
        "R11-come-back-at-once",
        "retry_after_seconds",
        """\
        if seconds:  # 0 gives no time: the backoff applies then, as in the SDK
""",
        """\
        if seconds is not None:
""",
        "a Retry-After of 0 is no answer: the backoff counts",
        ("test_times_told.py", "test_retry_after.py"),
    ),
    Mutant(
        "R12-date-by-own-clock",
        "_until",
        "(_read_date(now) or datetime.now(UTC))",
        "datetime.now(UTC)",
        "a date is read by the clock of the server that sent it",
        ("test_times_told.py",),
    ),
    Mutant(
        "R13-date-in-a-year",
        "_until",
        "return max(0.0, seconds) if seconds <= LONGEST_SECONDS else None",
        "return max(0.0, seconds)",
        "no date may block a call for years",
        ("test_times_told.py", "test_numbers_that_lie.py"),
    ),
    Mutant(
        "R14-settling-keeps-permit",
        "settling",
        """\
    finally:
        permit.release()""",
        """\
    finally:
        pass""",
        "a permit is given back, whatever fails while the governor learns",
        ("test_numbers_that_lie.py", "test_request.py"),
    ),
    Mutant(
        "R15-settling-raises",
        "settling",
        """\
        asyncio.get_running_loop().call_exception_handler(
            {"message": "gptx_async could not learn from a response", "exception": failure}
        )""",
        "        raise failure",
        "a bug of the pacing must not cost a paid answer",
        ("test_numbers_that_lie.py", "test_request.py"),
    ),
    Mutant(
        "R16-key-by-status-alone",
        "_cause_of_status",
        "if status == 401 or (400 <= status < 500 and _concerns_key(error)):",
        "if status == 401:",
        "a quota that is used up never gets better, whatever the status",
        ("test_refusals.py", "test_retry.py"),
    ),
    Mutant(
        "R17-403-is-the-key",
        "_cause_of_status",
        """\
        return Cause.REJECTION
""",
        """\
        return Cause.REFUSAL
""",
        "a 403 may concern only the prompt",
        ("test_refusals.py",),
    ),
    Mutant(
        "R18-exponent-unbounded",
        "Budget.wait",
        "2 ** min(self._waits.get(cause, 0), 16)",
        "2.0 ** self._waits.get(cause, 0)",
        "an exponent that grows without bound ends in an OverflowError",
        ("test_retry_waits.py",),
    ),
    Mutant(
        "Q12-line-not-given-back",
        "Request.__call__",
        """\
            destinations.give_back(kept)
""",
        """\
            pass
""",
        "a governor that is in use for ever is never dropped",
        ("test_idle_cache.py",),
    ),
    Mutant(
        "Q13-client-not-given-back",
        "Request.__call__",
        """\
            clients.give_back(client)
""",
        """\
            pass
""",
        "a client that is in use for ever is never closed",
        ("test_idle_cache.py",),
    ),
    Mutant(
        "Q14-answers-unbounded",
        "most_answer_tokens",
        "return min(most, MOST_TOKENS)",
        "return most",
        "no limit of an answer is longer than any model's context",
        ("test_request_options.py",),
    ),
    Mutant(
        "Q15-row-in-order-of-arrival",
        "Refusals.rejected",
        "row = {each for sent, each in history.rejected.items() if sent < oldest_in_flight}",
        "row = {*history.rejected.values()}",
        "rejections come faster than answers",
        ("test_refusals.py",),
    ),
    Mutant(
        "Q16-answer-keeps-row",
        "Refusals.ended",
        """\
        if answered:
            history.rejected.clear()
""",
        "",
        "an answer shows that the key is good",
        ("test_refusals.py",),
    ),
    Mutant(
        "Q17-one-prompt-many-times",
        "Refusals.rejected",
        "row = {each for sent, each in history.rejected.items() if sent < oldest_in_flight}",
        "row = [each for sent, each in history.rejected.items() if sent < oldest_in_flight]",
        "one prompt that is rejected many times says nothing of the key",
        ("test_refusals.py",),
    ),
    Mutant(
        "Q18-nothing-reserved",
        "Reservations.hold",
        "self._amounts[call] = await self._wait_for_room(estimate, left, reject)",
        "self._amounts[call] = 0.0",
        "many calls at once must not spend more than the limit",
        ("test_costs_in_flight.py",),
    ),
    Mutant(
        "Q19-turn-not-passed-on",
        "Reservations._turn",
        """\
            self._wake_next()
            raise""",
        "            raise",
        "a waiting call that is cancelled passes on its turn",
        ("test_governor_rules.py",),
    ),
    Mutant(
        "Q20-rejected-while-in-flight",
        "Reservations._wait_for_room",
        "if is_first and not self._amounts:",
        "if is_first:",
        "a call in flight may cost less than was reserved for it",
        ("test_costs_in_flight.py",),
    ),
]
