"""Mutants of the driver of a batch and its cancel scopes."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "B1-no-cancel-in-flight",
        "Batch._cancel",
        """\
            if item.waits_for is not None:
                item.waits_for.cancel()
""",
        """\
            pass
""",
        "a call that nobody waits for any more must end, and give its place to others",
        ("test_batch.py::test_a_system_exit_of_an_item_cancels_the_rest_and_is_raised",),
    ),
    Mutant(
        "B2-begun-not-cleared",
        "Batch._unwind",
        """\
        self._begun.clear()
""",
        """\
        pass
""",
        "the collector may not track this dictionary, which would keep the batch alive",
        (
            "test_batch.py::test_a_batch_that_is_unwound_is_freed_though_the_collector_ran_meanwhile",
        ),
    ),
    Mutant(
        "B3-cancel-first-first",
        "Batch._cancel",
        "for item in reversed(self._begun):",
        "for item in [*self._begun]:",
        "an item that waits for its turn must not get it from one that is cancelled before it",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B4-late-drops-answered",
        "Batch._advance",
        """\
                self._resume(answered)
            raise""",
        """\
                pass
            raise""",
        "what was answered before the deadline stays answered",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B5-arrivals-lost-wakeup",
        "_Arrivals.start",
        """\
        if self._items:
            self.wake()
""",
        "",
        "an item that arrived while nobody waited must not be left where it is",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B6-cancelled-timer-is-late",
        "Batch._end_in_time",
        "timer.outcome is not None and timer.outcome.error is None",
        "timer.outcome is not None",
        "a timer that is cancelled, by a service that closes, has not run out",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B8-window-off-by-one",
        "Batch._advance",
        "len(self._begun) < self._window.limit",
        "len(self._begun) <= self._window.limit",
        "the window bounds how many items are begun at once",
        ("test_batch.py",),
    ),
    Mutant(
        "B9-scope-takes-after-cancel",
        "CancelScope.add",
        """\
            if not self._is_cancelled:
                self._held[cancellable] = None
            return not self._is_cancelled""",
        """\
            self._held[cancellable] = None
            return True""",
        "a cancelled scope takes no more calls, or they would run to their end",
        ("test_cancel_scope.py::test_a_cancelled_scope_cancels_its_calls_and_rejects_later_ones",),
    ),
    Mutant(
        "B10-hold-exit-unchecked",
        "_ScopedRun.leave",
        """\
        if not failed:
            self._check(goes_on=goes_on)
""",
        "",
        "a call that returns after its scope was cancelled must not let the code go on",
        ("test_cancel_scope.py::test_a_cancelled_scope_cancels_its_calls_and_rejects_later_ones",),
    ),
    Mutant(
        "B11-refused-swallowed-ok",
        "CancelScope.run",
        "        if inside.was_refused:",
        "        if False:",
        "code that swallowed the refusal has not done what it was asked for",
        ("test_checkpoint.py::test_values_of_cancelled_items_are_not_stored",),
    ),
    Mutant(
        "B12-slice-never-short",
        "Batch._slice_seconds",
        "return SAMPLE_SECONDS if is_held_back else SLICE_SECONDS",
        "return SLICE_SECONDS",
        "an open window is filled within milliseconds",
        ("test_window.py",),
    ),
    Mutant(
        "B13-parent-not-set",
        "_switch",
        "    item.parent = greenlet.getcurrent()",
        "    pass #",
        "a coroutine may be resumed in another greenlet than the one that began the item",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B14-no-check-on-loop",
        "Batch.run_async",
        """\
has_arrived = await _wait_on_loop(self.arrivals, self._slice_seconds())
                if not has_arrived:
                    self.arrivals.check()""",
        "await _wait_on_loop(self.arrivals, self._slice_seconds())",
        "a dead loop thread can tell nobody: the waiting coroutine has to look",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B15-unwound-may-call",
        "BatchItem.leave",
        "        if self.batch.abandoned:",
        "        if False:",
        "an item that is being unwound gets no answer",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B16-timer-not-cancelled",
        "Batch.run",
        """\
            if timer is not None:
                timer.cancel()
""",
        "",
        "a timer that is left running keeps a task on the loop for the length of the deadline",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B18-timer-not-cancelled-on-a-loop",
        "Batch.run_async",
        """\
            if timer is not None:
                timer.cancel()
""",
        "",
        "a timer that is left running keeps a task on the loop for the length of the deadline",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B17-scope-order",
        "CancelScope.cancel",
        "for each in reversed(held):",
        "for each in held:",
        "a call that waits for its turn must not get it from one that is cancelled before it",
        ("test_batch_ends.py",),
    ),
    Mutant(
        "B19-panic-ends-batch",
        "BatchItem._outcome",
        """\
        except BaseException as error:
""",
        """\
        except Exception as error:
""",
        "whatever an item raises fails that item only",
        ("test_outcomes.py", "test_batch.py"),
    ),
    Mutant(
        "B20-greenlet-exit-is-a-result",
        "Batch._resume",
        """\
                if isinstance(left, greenlet.GreenletExit):  # which a greenlet returns
                    raise left
""",
        "",
        "a greenlet returns a GreenletExit that ended it",
        ("test_outcomes.py", "test_batch.py"),
    ),
]
