"""Mutants of the stand-in client, the engine, the token cache and the engine look-up."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "Br1-no-on-call",
        "_Method.__call__",
        """\
        calls.begin()
""",
        "",
        "an engine put into symbolicai's context variable is taken away before code of others runs",
        ("test_engine_lookup.py::test_code_of_the_application_finds_no_engine_put_for_it",),
    ),
    Mutant(
        "Br2-copy-escapes",
        "StandInClient._copy",
        "return StandInClient(client, self._calls, self._settings)",
        "return client",
        "calls of a copied client, `with_options` in a remedy, have the engine's options",
        ("test_request_options.py::TestCosts",),
    ),
    Mutant(
        "Br3-face-stale",
        "_face",
        "    if face is None or face._behind != behind:",
        "    if face is None:",
        "a resource that was replaced on the client counts from the next call on",
        ("test_stand_in_attributes.py",),
    ),
    Mutant(
        "Br4-streaming-response-on-loop",
        "_STREAMS",
        '"stream", "with_streaming_response"}',
        '"stream"}',
        "a streamed answer is read in the caller's thread, from a connection of the sync client",
        ("test_stand_in_attributes.py",),
    ),
    Mutant(
        "Br5-async-page-out",
        "_as_sync",
        """\
    if not name.startswith("Async"):
        return result
""",
        """\
    return result
""",
        "a page of a list is the sync class, whose further pages the sync client fetches",
        ("test_stand_in_client.py::test_answers_are_those_of_the_sync_client",),
    ),
    Mutant(
        "Br6-type-error-async-name",
        "_Method.__call__",
        """\
            _name_sync_class(error)
""",
        "",
        "the error of a wrong parameter names the sync class, as the sync client's does",
        ("test_differential.py::test_queried_directly",),
    ),
    Mutant(
        "Br7-made-plain-args-only",
        "_made_plain",
        "        if not all(_is_plain(value) for value in (*args, *kwargs.values())):",
        "        if not all(_is_plain(value) for value in args):",
        "arguments that run code when they are read are read in the caller's thread",
        ("test_bad_input.py::test_what_a_payload_runs_when_it_is_read_runs_in_the_asking_thread",),
    ),
    Mutant(
        "E1-inner-batch-takes-deadline",
        "AsyncBatchEngine._batch",
        "if deadline is None and not is_in_batch():",
        "if deadline is None:",
        "a batch within an item has the deadline of the outer call, not the engine's own",
        ("test_engine_queries.py",),
    ),
    Mutant(
        "E2-attempt-timeout-engine",
        "EngineCalls.attempt_timeout",
        "        if item is None or item.batch.timeout is None:",
        "        if True:",
        "a time limit given with the call replaces the engine's",
        ("test_engine.py",),
    ),
    Mutant(
        "E3-remedy-goes-to-scheduler",
        "EngineCalls.dispatch",
        "                self._thread.ask = None  # calls",
        "                pass  # calls",
        "a remedy's calls are not part of the scheduler's batch",
        ("test_engine.py",),
    ),
    Mutant(
        "E4-scheduler-callback-in-item",
        "active_callback",
        "    if callback is None or is_item():",
        "    if callback is None:",
        "an item's thread is driving a batch and cannot wait for the scheduler",
        ("test_engine_queries.py",),
    ),
    Mutant(
        "E5-key-behind-cause",
        "hide_key",
        "left += [each.__cause__, each.__context__]",
        "left += [each.__cause__]",
        "an error may hold the key in the request of its context",
        ("test_secrets.py::test_a_key_is_found_behind_a_cause_and_behind_a_context",),
    ),
    Mutant(
        "E6-limit-with-scheduler",
        "AsyncBatchEngine._is_unlimited",
        "return self.deadline is None or is_in_batch() or "
        "active_callback(self._callback) is not None",
        "return self.deadline is None or is_in_batch()",
        "the engine's deadline holds for a scheduler's whole batch, not again for each query",
        ("test_engine_queries.py",),
    ),
    Mutant(
        "E7-query-left-on-argument",
        "ScheduledQuery.ask",
        """\
        finally:
            take_query(self._argument)
        outputs""",
        """\
        finally:
            pass
        outputs""",
        "an argument must not carry a query that has ended into the next batch",
        ("test_engine_queries.py",),
    ),
    Mutant(
        "E8-unsent-not-counted",
        "EngineCalls.dispatch",
        "            request.record.failed(error)  # counts",
        "            pass  # counts",
        "a call that never came to the loop has failed, and is counted",
        ("test_engine_queries.py",),
    ),
    Mutant(
        "E9-thread-local-query-not-restored",
        "EngineCalls.going_to",
        """\
            self._thread.ask = outer
""",
        """\
            pass
""",
        "a nested query must not take away the scheduler's hold on the outer one",
        ("test_engine_queries.py",),
    ),
    Mutant(
        "E10-reinstall-forgets-before",
        "install",
        """\
    if registered is not _installed.get("engine"):
        _installed["before"]""",
        """\
    if True:
        _installed["before"]""",
        "`uninstall` puts back what was registered before the first `install`",
        ("test_engine.py::test_install_and_uninstall_put_back_what_was_there",),
    ),
    Mutant(
        "E11-key-not-set",
        "make",
        """\
            openai.api_key = api_key
""",
        """\
            pass
""",
        "the sync engine's forward reads `openai.api_key` after an error",
        ("test_engine_queries.py",),
    ),
    Mutant(
        "E12-group-not-shared",
        "AsyncBatchEngine._logged_batch",
        """\
        batch.shared = BatchGroup(record.id)
""",
        "",
        "a refused key ends the unsent requests of the same batch",
        (
            "test_request.py::TestRefusals::test_what_a_refused_batch_has_not_sent_fails_at_once_and_unsent",
        ),
    ),
    Mutant(
        "T1-shared-list",
        "RememberingEncoding.encode",
        "return [*self._tokens_of(text)]",
        "return self._tokens_of(text)",
        "the list that is returned is the caller's own",
        ("test_token_cache.py",),
    ),
    Mutant(
        "T2-special-unchecked",
        "RememberingEncoding.encode",
        "not any(special in text for special in self.special_tokens_set)",
        "True",
        "a special token in a text is refused, remembered or not",
        ("test_token_cache.py::test_it_encodes_as_tiktoken_does_the_first_time_and_again",),
    ),
    Mutant(
        "T3-subclass-of-str",
        "RememberingEncoding.encode",
        "if type(text) is str and not allowed_special:",
        "if isinstance(text, str) and not allowed_special:",
        "a subclass of str may behave in another way",
        ("test_token_cache.py",),
    ),
    Mutant(
        "L1-not-taken-away",
        "LookupShortcut.end",
        """\
            _CURRENT.set(None)
            _thread.is_active = False""",
        "            _thread.is_active = False",
        "what was put into symbolicai's context variable must not stay there",
        ("test_engine_lookup.py",),
    ),
    Mutant(
        "L2-over-another",
        "LookupShortcut.__enter__",
        """\
        if _CURRENT is None or _CURRENT.get() is not None:
            return self
""",
        "",
        "a DynamicEngine that the application entered comes first",
        ("test_engine_queries.py",),
    ),
    Mutant(
        "L3-found-of-another",
        "LookupShortcut.__enter__",
        "if found is None or found[0]() is not self._argument:",
        "if found is None:",
        "what was found for one argument does not hold for another",
        (
            "test_engine_lookup.py::test_a_block_within_a_handler_counts_the_tokens_of_what_is_asked_in_it",
        ),
    ),
    Mutant(
        "L4-left-block",
        "entered_dynamic_engine",
        'if isinstance(value, DynamicEngine) and getattr(value, "_entered", False):',
        "if isinstance(value, DynamicEngine):",
        "a block that was left does not count",
        ("test_engine_queries.py",),
    ),
]
