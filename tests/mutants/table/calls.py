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
        ("test_request_terms.py::TestCosts",),
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
        "Request._tell_group",
        "line.end_unsent(lambda other: other._group is group, error)",
        "line.end_unsent(lambda other: True, error)",
        "a refused key ends the requests of its batch, not those of others",
        ("test_request.py",),
    ),
    Mutant(
        "Q4-cost-ends-other-engines",
        "Request._end_unsent_at_cost",
        "line.end_unsent(lambda other: other._terms.recorder is recorder, error)",
        "line.end_unsent(lambda other: True, error)",
        "`max_cost` is one engine's, and ends that engine's requests only",
        ("test_request_terms.py::TestCosts",),
    ),
    Mutant(
        "Q5-n-ignored",
        "_most_tokens",
        "most = limit * (answers if isinstance(answers, int) and answers > 0 else 1)",
        "most = limit",
        "`n` answers use `n` times the tokens",
        ("test_request_terms.py::TestReservations",),
    ),
    Mutant(
        "Q6-starved-by-others-error",
        "Request._send",
        "failed = self._last_error or retry.copy_of(starved.error)",
        "failed = retry.copy_of(starved.error)",
        "a call that was refused itself raises its own last error",
        ("test_request_terms.py::TestErrors",),
    ),
    Mutant(
        "Q7-retry-count-off",
        "Request._attempt",
        "self.record.attempt - 1,",
        "self.record.attempt,",
        "the count of retries that is sent starts at 0",
        ("test_request.py", "test_wire.py"),
    ),
    Mutant(
        "Q8-own-cancel-swallowed",
        "Request._turn",
        "if self.ended_by is None or task.uncancel():",
        "if self.ended_by is None:",
        "a call that its own caller cancels as well is cancelled",
        ("test_request_terms.py::TestErrors",),
    ),
    Mutant(
        "Q9-refusal-raised-itself",
        "Request._turn",
        "            raise retry.copy_of(refusal)",
        "            raise refusal",
        "an error raised to several callers would grow with each",
        ("test_request_terms.py::TestErrors",),
    ),
    Mutant(
        "Q10-estimate-floor",
        "estimate_tokens",
        "return -(-characters // CHARACTERS_PER_TOKEN)",
        "return characters // CHARACTERS_PER_TOKEN",
        "an estimate is rounded up, or short prompts cost nothing",
        ("test_request_terms.py::TestReservations",),
    ),
    Mutant(
        "Q11-ended-by-raised-itself",
        "Request._turn",
        "        raise retry.copy_of(self.ended_by)",
        "        raise self.ended_by",
        "an error raised to several callers would grow with each",
        (
            "test_request_terms.py::TestCosts",
            "test_request_terms.py::TestErrors",
        ),
    ),
]
