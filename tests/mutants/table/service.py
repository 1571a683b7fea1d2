"""Mutants of the background thread and its loop."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "S1-woken-reset-late",
        "LoopThread._begin_submitted",
        """\
        self._is_woken = False  # before the queue is read, so that no call is missed
        loop = asyncio.get_running_loop()
        while self._submitted:
            call = self._submitted.popleft()""",
        """\
        loop = asyncio.get_running_loop()
        while self._submitted:
            call = self._submitted.popleft()
            self._is_woken = bool(self._submitted)""",
        "the flag must fall before the queue is read, or a call submitted in between is missed",
        equivalent="the flag falls before the last look at the queue, in this form as well",
    ),
    Mutant(
        "S2-submit-error-stays-woken",
        "LoopThread.submit",
        """\
            self._is_woken = False
            if isinstance""",
        "            if isinstance",
        "after a wake-up that failed, the next call must wake the loop",
        ("test_service_ends.py",),
    ),
    Mutant(
        "S3-precancel-ignored",
        "Call.run",
        "            if self._cancelled:  # before",
        "            if False:  # before",
        "a call may be cancelled before its task exists",
        ("test_service.py::test_a_call_cancelled_before_its_start_never_begins",),
    ),
    Mutant(
        "S4-end-no-yield",
        "LoopThread._end",
        """\
        await asyncio.sleep(0)  # calls that were just submitted become tasks
""",
        "",
        "what was submitted just before the end must become a task, to be cancelled and answered",
        equivalent="the later steps end such a call, too, with the same error",
    ),
    Mutant(
        "S5-finish-twice",
        "Call._finish",
        "            self.thread.pending.remove(self)  # succeeds",
        "            self.thread.pending.discard(self)  # succeeds",
        "the loop's thread and a waiter may both finish a call: only the first counts",
        ("test_service_ends.py",),
    ),
    Mutant(
        "S6-no-exit-check",
        "Call.check",
        "        elif thread is not None and is_exiting():",
        "        elif False:",
        "threads that are not daemons must not wait for the network while the interpreter exits",
        ("test_fork_and_exit.py::test_exit_with_requests_in_flight_is_quick_and_silent",),
    ),
    Mutant(
        "S7-callers-context",
        "LoopThread._begin_submitted",
        "loop.create_task(coroutine, context=contextvars.Context())",
        "loop.create_task(coroutine)",
        "a connection outlives its first caller, and must not keep that caller's context variables",
        ("test_service.py::test_no_context_variable_of_a_caller_is_seen_on_the_loop",),
    ),
    Mutant(
        "S8-fork-default-lock",
        "_after_fork_in_child",
        """\
    global _default_lock
    _default_lock = threading.RLock()
    for""",
        "    for",
        "another thread may hold the lock at the fork, and does not exist in the child",
        ("test_service_ends.py",),
    ),
    Mutant(
        "S9-fork-collects-inherited",
        "LoopService._become_new",
        """\
        _inherited.append(self._current)
""",
        "",
        "collecting the parent's loop in the child closes descriptors that the parent uses",
        equivalent="the frames of the lost loop thread hold it, and are never freed",
    ),
    Mutant(
        "S10-outcome-keeps-frame",
        "Outcome.result",
        """\
            del self, first, context
""",
        """\
            pass
""",
        "a traceback holds the frame, and with it the outcome and all that it holds",
        ("test_call.py",),
    ),
    Mutant(
        "S11-explain-cancelled",
        "LoopThread.explain",
        "and self.ended and not cancelled:",
        "and self.ended:",
        "a call that its caller cancelled was not lost with the thread",
        ("test_service_ends.py",),
    ),
    Mutant(
        "S12-late-starter-left",
        "LoopThread.start",
        """\
            self._ready.add_done_callback(self._stop_late_starter)
""",
        "",
        "a thread that starts after the time-out must not stay",
        ("test_service_ends.py",),
    ),
    Mutant(
        "S13-close-fails-no-pending",
        "LoopThread.close",
        """\
        self._thread.join(4 * GRACE_SECONDS)
        self._fail_pending()""",
        "        self._thread.join(4 * GRACE_SECONDS)",
        "callers that still wait when the service closes must be answered",
        ("test_service_ends.py",),
    ),
    Mutant(
        "S14-main-thread-exiting",
        "is_exiting",
        "not (main.is_alive() or threading.current_thread() is main)",
        "not main.is_alive()",
        "exit handlers run in the main thread after it has 'ended', and may still call",
        (
            "test_fork_and_exit.py::test_calls_in_exit_handlers_before_and_after_ours_answer_or_fail",
        ),
    ),
    Mutant(
        "S15-interrupt-no-grace",
        "Call.wait",
        """\
            if self.thread is not None:
                done.wait(GRACE_SECONDS)
            raise""",
        "            raise",
        "after Ctrl-C the call's clean-up is waited for, within bounds",
        ("test_service.py::test_ctrl_c_cancels_the_coroutine_before_it_is_raised",),
    ),
    Mutant(
        "S16-start-without-lock",
        "LoopService.submit",
        """\
        with self._lock:
            before = self._current
            while not""",
        """\
        if True:
            before = self._current
            while not""",
        "two first calls at once must start one thread",
        ("test_service.py::test_errors_of_a_dead_thread_are_one_object_per_caller",),
    ),
    Mutant(
        "S17-executor-not-joined",
        "LoopThread._end_executor",
        "                thread.join(max(0.0, until - clock.seconds()))",
        "                pass",
        "name look-ups that still run must not outlive the service",
        ("test_service.py::test_close_leaves_no_thread_of_the_executor",),
    ),
    Mutant(
        "S18-closed-not-final",
        "LoopService.close",
        """\
            self._closed = True
            thread,""",
        "            thread,",
        "a service that was closed stays closed",
        ("test_service.py::test_close_is_final_and_may_come_twice",),
    ),
]
