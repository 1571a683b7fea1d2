"""The consumer of a run: collects values, applies `on_error`, and attaches results to errors.

It does not wait and does not know whether a thread or a coroutine takes the values: `runner.py`
does the waiting.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ItemStoppedError
from ..transport.redaction import hide_key
from .backends.backend import BackendRun, ItemOutcome
from .backends.threads import ThreadRun
from .job import MapJob
from .progress import Progress
from .results import Failed, Results

__all__ = ["Consumer"]


class Consumer:
    """Takes the outcomes of a run, in one thread or on one loop.

    Attributes:
        run: The run.
        values: The values that are kept for the caller, by the index of the item.

    Args:
        job: What to run.
        window: How many items per worker are read ahead of the values that the caller has taken;
            None for no limit.
        wake: Called in any thread when an outcome is there or the run is over.
        in_frame: Whether errors leave through the frame of a generator or a coroutine, from which
            Python does not allow a StopIteration.
    """

    def __init__(
        self, job: MapJob, window: int | None, wake: Callable[[], None], *, in_frame: bool
    ) -> None:
        self.run: BackendRun = ThreadRun(job, window and window * job.workers, wake)
        self.values: dict[int, Any] = {}
        self._job = job
        self._failed: dict[int, Failed] = {}
        self._stopped_by: int | None = None
        self._raised: BaseException | None = None
        self._in_frame = in_frame
        self._progress = Progress(job.dataset.count, is_wanted=job.shows_progress)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended and all outcomes are taken."""
        return self.run.is_over and not self.run.outcomes  # in this order

    def accept(self) -> int:
        """Take the first outcome, and return the index of its item.

        Raises:
            ItemStoppedError: Replaces a StopIteration in a generator or a coroutine.
            BaseException: The error of the item, if that ends the run; or the error of the run.
        """
        try:
            return self._accept()
        except (StopIteration, StopAsyncIteration) as error:
            if not self._in_frame:
                raise
            index = self.run.outcomes[0].index
            raise ItemStoppedError(
                f"{'The run' if index is None else f'Item {index}'} raised {type(error).__name__}, "
                "which a generator or a coroutine cannot raise. Let the expression raise another "
                'error, or give on_error="return".'
            ) from error

    def _accept(self) -> int:
        outcome = self.run.outcomes[0]
        if outcome.index is None:
            raise self._error_of(outcome)
        failed = outcome.error is not None
        self.values[outcome.index] = self._replacement(outcome) if failed else outcome.value
        self.run.outcomes.popleft()  # last, so that an interrupt before it loses nothing
        self._progress.add(failed=failed)
        return outcome.index

    def hand_over(self, index: int) -> Any:
        """Return a value that the caller takes now. It is kept until `forget`."""
        self.run.free_window()
        return self.values[index]

    def forget(self, index: int) -> None:
        """Drop a value."""
        del self.values[index]
        self._failed.pop(index, None)

    def refresh_progress(self) -> None:
        """Update the progress bar. Called regularly while the consumer waits."""
        self._progress.refresh()

    def close_progress(self) -> None:
        """Finish the progress bar."""
        self._progress.close()

    def results(self) -> Results:
        """Return the values that are done and that the caller has not taken."""
        done = {
            each.index: each.value
            for each in [*self.run.outcomes]
            if each.index is not None and each.error is None
        }
        labels = self._job.dataset.labels
        return Results(done | self.values, self._failed.values(), labels)

    def attach_results(self, error: BaseException) -> None:
        """Attach the results so far to the error that stopped the run."""
        if isinstance(error, GeneratorExit) and error is not self._raised:
            return  # nobody sees it: the caller has closed the stream
        results = self.results()
        with contextlib.suppress(Exception):  # its class may define another `results`
            # Not setattr: the error may be a frozen dataclass, or reject attributes otherwise.
            object.__setattr__(error, "results", results)
        with contextlib.suppress(Exception):
            error.add_note(self._note(results))

    @contextlib.contextmanager
    def attaching_results(self, error: BaseException) -> Iterator[None]:
        """Attach the results to the error after the block, which waits for the run to end.

        An error that interrupts the block, for example a second Ctrl-C, gets them as well.
        """
        try:
            yield
        except BaseException as interrupt:
            self.attach_results(interrupt)
            raise
        finally:
            self.attach_results(error)

    def _note(self, results: Results) -> str:
        where = "" if self._stopped_by is None else f"Raised for item {self._stopped_by}. "
        stored = ""
        if self._job.open_checkpoint is not None and results:
            unstored = len({*self.run.unstored} & {*results.indices})
            stored = f", and all but {unstored} of them" if unstored else ", and"
            stored += " in the checkpoint"
        return (
            f"{where}gptx_async has stopped the run. The values that were done and not yet taken, "
            f"{len(results)} in all, are in this error's attribute `results`{stored}."
        )

    def _replacement(self, outcome: ItemOutcome) -> Any:
        """Return what replaces the value of an item that failed."""
        if self._job.on_error == "raise":
            raise self._error_of(outcome)
        assert outcome.index is not None
        assert outcome.error is not None
        hide_key(outcome.error)  # results are pickled and kept
        failed = Failed(outcome.index, outcome.item, outcome.error)
        self._failed[outcome.index] = failed
        return self._job.on_error(failed) if callable(self._job.on_error) else failed

    def _error_of(self, outcome: ItemOutcome) -> BaseException:
        self._stopped_by = outcome.index
        self._raised = outcome.error
        assert outcome.error is not None
        return outcome.error
