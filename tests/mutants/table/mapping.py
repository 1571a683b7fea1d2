"""Mutants of runs over datasets: workers, results, checkpoints, identities, files."""

from ..mutant import Mutant

MUTANTS = [
    Mutant(
        "C1-digest-unchecked",
        "Checkpoint.find",
        "if self._checks_items and row[0] != digest:",
        "if False:",
        "an item that changed must not get the old item's answer",
        ("test_checkpoint.py::test_another_item_is_rejected",),
    ),
    Mutant(
        "C2-failure-forgotten",
        "Checkpoint._write",
        "            self._failure = error\n            raise",
        "            raise",
        "after a failed write nothing more is kept, and the run says so",
        (
            "test_checkpoint.py::test_nothing_is_stored_after_a_failed_write",
            "test_checkpoint.py",
        ),
    ),
    Mutant(
        "C3-new-parts-not-kept",
        "Checkpoint._compare",
        """\
            self._file.connection.executemany(
                "INSERT OR IGNORE INTO job VALUES (?, ?)", job.items()
            )
""",
        "            pass\n",
        "what becomes known of the job later must be compared from then on",
        ("test_checkpoint_job.py",),
    ),
    Mutant(
        "C4-not-exclusive",
        "CheckpointFile.lock",
        """\
        self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
""",
        "",
        "two runs must not write to one checkpoint",
        ("test_checkpoint_file.py",),
    ),
    Mutant(
        "C5-one-row-lost",
        "Checkpoint._write",
        "rows = [self._pending.popleft() for _ in range(len(self._pending))]",
        "rows = [self._pending.popleft() for _ in range(len(self._pending))][-1:]",
        "all that ended while another thread wrote is written",
        ("test_checkpoint.py::test_many_threads_store_at_once",),
    ),
    Mutant(
        "C6-unpickle-unchecked",
        "encode",
        "    pickle.loads(file.getvalue())  # some",
        "    # some",
        "a value that cannot be read back is refused when it is kept",
        ("test_checkpoint_values.py::test_a_value_that_cannot_be_stored_fails_its_item",),
    ),
    Mutant(
        "C7-wal-not-removed",
        "remove_checkpoint",
        'for suffix in ("", "-wal", "-shm"):',
        'for suffix in ("",):',
        "a removed checkpoint leaves no files behind",
        ("test_checkpoint_file.py",),
    ),
    Mutant(
        "C8-json-bool-keys",
        "is_plain_json",
        "if not all(type(name) is str for name in value):",
        "if False:",
        "JSON turns keys of a dictionary into strings",
        ("test_checkpoint_values.py::test_values_come_back_as_they_were", "test_plain_json.py"),
    ),
    Mutant(
        "C9-keep-without-lock",
        "Checkpoint.store",
        """\
        self._pending.append(row)
        with self._lock:
            self._check()""",
        """\
        self._pending.append(row)
        if True:
            self._check()""",
        "two threads must not write at once",
        ("test_checkpoint_file.py::test_a_checkpoint_that_is_in_use_is_rejected",),
    ),
    Mutant(
        "N1-stream-keeps-failed",
        "Consumer.forget",
        """\
        self._failed.pop(index, None)
""",
        "",
        "a stream runs for ever and must not keep its failed items",
        ("test_map.py::test_a_stream_keeps_no_failed_items",),
    ),
    Mutant(
        "N2-stop-not-joined-before-tell",
        "_RunInThread._stop",
        """\
        with self._consumer.attaching_results(error):  # last: items that end meanwhile count too
            self._consumer.run.join()""",
        """\
        with self._consumer.attaching_results(error):
            pass
        self._consumer.run.join()""",
        "what ends while a run is stopped is done as well",
        ("test_runner.py",),
    ),
    Mutant(
        "N3-is-over-order",
        "Consumer.is_over",
        "return self.run.is_over and not self.run.outcomes  # in this order",
        "return not self.run.outcomes and self.run.is_over",
        "the last arrival must not be missed",
        ("test_runner.py",),
    ),
    Mutant(
        "N4-loop-not-given",
        "collect_on_loop",
        """\
                consumer.accept()
                await asyncio.sleep(0)  # let the loop run, however many outcomes there are
""",
        """\
                consumer.accept()
""",
        "the caller's loop goes on, however many items arrive",
        ("test_runner.py",),
    ),
    Mutant(
        "N5-stream-window-3",
        "STREAM_WINDOW",
        "STREAM_WINDOW = 2",
        "STREAM_WINDOW = 3",
        "a stream reads ahead a bounded number of items",
        ("test_map.py::test_an_endless_dataset_is_read_as_far_as_it_is_worked_on",),
    ),
    Mutant(
        "N6-popleft-before-on-error",
        "Consumer._accept",
        """\
        self.values[outcome.index] = self._replacement(outcome) if failed else outcome.value
        self.run.outcomes.popleft()  # last, so that an interrupt before it loses nothing
""",
        """\
        self.run.outcomes.popleft()
        self.values[outcome.index] = self._replacement(outcome) if failed else outcome.value
""",
        "an item whose `on_error` raises is still the one that arrived",
        ("test_map.py::test_a_stop_iteration_of_an_expression_ends_no_stream",),
    ),
    Mutant(
        "N7-results-lack-arrived",
        "Consumer.results",
        "return Results(done | self.values, self._failed.values(), labels)",
        "return Results(self.values, self._failed.values(), labels)",
        "the results of an error hold all that has arrived",
        ("test_runner.py",),
    ),
    Mutant(
        "N8-cancelled-amap-no-cancel",
        "_RunOnLoop._stop",
        """\
        self._consumer.run.cancel()
        if isinstance(error, GeneratorExit):""",
        """\
        if not isinstance(error, GeneratorExit):
            self._consumer.run.cancel()
        if isinstance(error, GeneratorExit):""",
        "a coroutine that is thrown away still cancels its run",
        ("test_map.py::test_a_coroutine_of_amap_that_is_thrown_away_ends_its_run",),
    ),
    Mutant(
        "K1-kept-item-keeps-slot",
        "ThreadRun._dispatch",
        """\
            if stored is not None:
                self._free_workers.release()
""",
        """\
            if stored is not None:
""",
        "an item served from the checkpoint uses no worker",
        ("test_runner.py",),
    ),
    Mutant(
        "K2-works-after-cancel",
        "ThreadRun._work",
        "is not None and not self._is_cancelled:",
        "is not None:",
        "after a cancel no worker begins another item",
        ("test_runner.py",),
    ),
    Mutant(
        "K3-asyncio-cancel-ends-run",
        "_run_item",
        """\
    except BaseException as error:
        return None, error""",
        """\
    except Exception as error:
        return None, error""",
        "an item may raise asyncio's CancelledError without ending the run",
        ("test_outcomes.py",),
    ),
    Mutant(
        "K4-cancel-leaves-workers",
        "ThreadRun.cancel",
        """\
        for _ in range(self._job.workers):
            self._tasks.put(None)
        self._wake()""",
        "        self._wake()",
        "idle workers must end with a cancelled run",
        ("test_map.py::test_a_reader_that_blocks_does_not_hold_up_the_end",),
    ),
    Mutant(
        "K5-idle-unlocked",
        "ThreadRun._work",
        """\
                with self._idle_lock:
                    self._idle += 1
                self._free_workers.release()""",
        """\
                self._free_workers.release()
                with self._idle_lock:
                    self._idle += 1""",
        "the count of idle workers decides whether another is started",
        ("test_runner.py",),
    ),
    Mutant(
        "K6-shared-context",
        "ThreadRun._work_on",
        "_run_item(self._context.copy(), self._scope,",
        "_run_item(self._context, self._scope,",
        "two workers must not run in one context",
        ("test_map.py",),
    ),
    Mutant(
        "K7-over-before-workers",
        "ThreadRun._read",
        """\
        for worker in self._workers:
            worker.join()
""",
        "",
        "a run is over when its workers are",
        ("test_map.py::test_an_expression_is_run_over_a_dataset_in_its_order",),
    ),
    Mutant(
        "K8-checkpoint-left-open",
        "ThreadRun._read",
        """\
        with contextlib.suppress(CheckpointError):  # nothing is lost: all values are committed
            self.close()
""",
        "",
        "the checkpoint is closed with the run",
        ("test_runner.py",),
    ),
    Mutant(
        "K9-item-held",
        "ThreadRun._feed",
        """\
            del item  # release it before waiting for the next one
""",
        "",
        "an item is not held while the next is waited for",
        ("test_threads.py::test_an_item_is_released_before_the_next_one_is_read",),
    ),
    Mutant(
        "I1-list-is-tuple",
        "_add",
        'update(b"%s:%d:" % (kind.__name__.encode(), len(value)))',
        'update(b"list:%d:" % len(value))',
        "a list and a tuple of the same items are different arguments",
        ("test_identity.py",),
    ),
    Mutant(
        "I2-kwdefaults",
        "_values_of_function",
        "[function.__defaults__, function.__kwdefaults__]",
        "[function.__defaults__]",
        "defaults of keyword-only parameters are part of a function",
        ("test_identity.py",),
    ),
    Mutant(
        "I3-lasting",
        "_lasting",
        'return {name: value for name, value in state.items() if name != "_dynamic_context"}',
        "return state",
        "what a run changes in an expression is not part of the job",
        ("test_checkpoint.py::test_the_answers_of_an_expression_are_stored",),
    ),
    Mutant(
        "I4-own-classes",
        "_own_classes",
        "return [base for base in kind.__mro__ if base",
        "return [base for base in [kind] if base",
        "a change in a base class of the application is a change of the job",
        ("test_checkpoint.py::test_a_source_that_has_changed_is_another_job",),
    ),
    Mutant(
        "I5-nested-code-names",
        "_names_in",
        "            yield from _names_in(constant)",
        "            pass",
        "constants and names in nested functions are part of a function",
        ("test_identity.py",),
    ),
    Mutant(
        "I6-length-omitted",
        "_add",
        'update(b"%s:%d:%s" % (kind.__name__.encode(), len(data), data))',
        'update(b"%s:%s" % (kind.__name__.encode(), data))',
        "without the length, one text could be taken for two",
        ("test_identity.py",),
    ),
    Mutant(
        "I7-no-model",
        "identity_of",
        """\
        parts["model"] = model
""",
        """\
        pass
""",
        "another model is another job",
        ("test_checkpoint.py::test_another_model_is_another_job",),
    ),
    Mutant(
        "D1-csv-count-header",
        "Source.count",
        "if values) - 1)",
        "if values))",
        "the header of a CSV file is not a row",
        ("test_source.py",),
    ),
    Mutant(
        "D2-part-left",
        "Sink.abandon",
        "                self._part.remove()",
        "                pass",
        "an abandoned output leaves no .part file",
        ("test_sink.py",),
    ),
    Mutant(
        "D3-csv-newlines",
        "Source._open_text",
        'newline="" if self._form == "csv" else None,',
        "newline=None,",
        "line ends within a quoted cell are part of it",
        ("test_source.py",),
    ),
    Mutant(
        "D4-no-flush",
        "Sink.flush",
        """\
            with self._file_errors_named():
                self._file.flush()
""",
        """\
            pass
""",
        "rows are in the file after each flush",
        ("test_sink.py::test_an_output_has_its_name_when_it_is_whole",),
    ),
    Mutant(
        "D5-check-passes",
        "Sink.check",
        """\
        if strange:
            raise""",
        """\
        if False:
            raise""",
        "a row with a field of its own has no column in the output",
        ("test_sink.py::test_a_row_with_a_field_of_its_own_has_no_place_in_columns",),
    ),
    Mutant(
        "D6-group-off-by-one",
        "ParquetWriter.write",
        "if len(self._rows) >= ROW_GROUP:",
        "if len(self._rows) > ROW_GROUP:",
        "a row group of Parquet has a fixed number of rows",
        ("test_sink.py::test_parquet_keeps_the_types_of_parquet",),
    ),
    Mutant(
        "D7-field-size",
        "Source._begin",
        "            csv.field_size_limit(sys.maxsize)",
        "            pass #",
        "a cell may be longer than the csv module's default limit",
        ("test_source.py",),
    ),
    Mutant(
        "C10-wide-permissions",
        "CheckpointFile._create_file",
        "0o600",
        "0o644",
        "a checkpoint holds answers, which are nobody else's to read",
        ("test_checkpoint_file.py",),
    ),
    Mutant(
        "C11-pickle-read",
        "decode",
        """\
    if not with_pickle:
        raise PickledValueError
""",
        "",
        "unpickling runs whatever the file says",
        ("test_checkpoint_values.py",),
    ),
    Mutant(
        "C12-missing-parts-accepted",
        "Checkpoint._check_parts",
        "if {*json.loads(stored[_PARTS]), *needed, _KEY} <= stored.keys():",
        "if True:",
        "a job table from which parts were removed would differ in nothing",
        ("test_checkpoint_job.py",),
    ),
    Mutant(
        "C13-waiters-not-told",
        "Checkpoint._write",
        """\
            self._failure = self._unwritten
""",
        "",
        "a commit that fails must fail the threads whose rows were in it",
        ("test_checkpoint.py",),
    ),
    Mutant(
        "C14-new-columns-compared",
        "Checkpoint._compared_part",
        "if not self._added_columns or not isinstance(item, dict):",
        "if True:",
        "a notebook cell that puts its results into a new column can be run again",
        ("test_checkpoint_job.py",),
    ),
    Mutant(
        "C15-tag-is-data",
        "_tagged",
        "return {_OBJECT: tagged} if _TAGS & tagged.keys() else tagged",
        "return tagged",
        "data may have a key that looks like a tag",
        ("test_checkpoint_values.py",),
    ),
    Mutant(
        "C16-symbol-with-more",
        "_is_plain_symbol",
        "return bool(_state_of(symbol) == _state_of(rebuilt))",
        "return True",
        "a Symbol that is more than its value is not JSON",
        ("test_checkpoint_values.py",),
    ),
    Mutant(
        "C17-huge-integer",
        "_is_stored_as_json",
        "return bool(-LARGEST_INTEGER < value < LARGEST_INTEGER)",
        "return True",
        "Python limits how many digits it converts from text",
        ("test_checkpoint_values.py",),
    ),
    Mutant(
        "C18-uri-name",
        "check_name",
        'if name.startswith("file:"):',
        "if False:",
        "SQLite takes such a name for something else",
        ("test_checkpoint_file.py",),
    ),
    Mutant(
        "I8-docstring-counts",
        "_code_of",
        "return ast.unparse(_without_docstrings(tree))",
        "return ast.unparse(tree)",
        "a docstring that changes does not change the job",
        ("test_identity.py",),
    ),
    Mutant(
        "I9-first-constant-dropped",
        "_parts_of",
        """\
    if _has_docstring(code):
        constants[0] = None
""",
        """\
    constants[:1] = [None]
""",
        "the first constant of a code without a docstring is data",
        ("test_identity.py",),
    ),
    Mutant(
        "I10-later-attribute-differs",
        "_may_be_unknown",
        'return part == "model" or part.startswith(_ATTRIBUTE)',
        'return part == "model"',
        "an instance may get attributes while it works",
        ("test_identity.py",),
    ),
    Mutant(
        "D8-part-over-others",
        "PartFile.check",
        "if os.path.lexists(path) and not (is_ours or self._overwrite):",
        "if False:",
        "a file of that name may be somebody else's",
        ("test_cli_files.py", "test_sink.py"),
    ),
    Mutant(
        "D9-link-followed",
        "_CREATE",
        "os.O_EXCL | os.O_NOFOLLOW",
        "os.O_NOFOLLOW",
        "nobody else's file is written to",
        ("test_part_file.py",),
    ),
    Mutant(
        "D10-replaced-part-renamed",
        "PartFile.complete",
        "if not self._is_created():",
        "if False:",
        "a part that was replaced is not what was written",
        ("test_cli_files.py", "test_sink.py"),
    ),
    Mutant(
        "D11-locked-part-removed",
        "PartFile._is_leftover",
        "fcntl.flock(part, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "pass",
        "a part that another run is writing is no leftover",
        ("test_cli_files.py",),
    ),
    Mutant(
        "D12-formula-cells",
        "CSVWriter._write_cells",
        "[_quoted(cell) for cell in cells] if self._is_safe else cells",
        "cells",
        "a spreadsheet would run a cell that begins like a formula",
        ("test_cli_files.py", "test_cli_run.py", "test_sink.py"),
    ),
    Mutant(
        "D13-line-ends",
        "_Lines.write",
        'f"{line.removesuffix(self.END)}\\n"',
        "line",
        "lines end as this system's tools expect it",
        ("test_sink.py",),
    ),
    Mutant(
        "K10-unkept-value-lost",
        "ThreadRun._work_on",
        """\
                self._add(ItemOutcome(task.index, value))  # it may have cost money
""",
        "",
        "a value that could not be stored may have cost something",
        ("test_checkpoint.py",),
    ),
    Mutant(
        "K11-refused-value-ends-run",
        "ThreadRun._work_on",
        """\
            except CheckpointValueError as refused:
                value, error = None, refused
""",
        "",
        "a value that cannot be stored fails its item only",
        ("test_checkpoint_values.py",),
    ),
    Mutant(
        "N9-frozen-error",
        "Consumer.attach_results",
        'object.__setattr__(error, "results", results)',
        'setattr(error, "results", results)',
        "an error may be a frozen dataclass",
        ("test_outcomes.py",),
    ),
    Mutant(
        "N10-second-interrupt",
        "Consumer.attaching_results",
        """\
        except BaseException as interrupt:
            self.attach_results(interrupt)
            raise
""",
        "",
        "a second Ctrl-C gets what is done as well",
        ("test_outcomes.py", "test_map.py"),
    ),
    Mutant(
        "N11-stop-iteration-in-frame",
        "Consumer.accept",
        """\
            if not self._in_frame:
                raise
""",
        """\
            raise
""",
        "Python lets no generator or coroutine raise a StopIteration",
        ("test_outcomes.py", "test_map.py"),
    ),
]
