"""The public names, what importing them loads, and that a class name stands for one thing."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import gptx_async
from support.child import DEADLINE

PUBLIC = {
    "gptx_async": [
        "AsyncBatchEngine", "AsyncDynamicEngine", "AsyncGPTXBatchEngine", "AsyncMap", "Failed",
        "Percentiles", "RateLimit", "Results", "Stats", "__version__", "acall", "amap",
        "configure_logging", "dynamic_engine", "errors", "install", "map", "uninstall",
    ],
    "gptx_async.errors": [
        "AsyncioNeededError", "CallCancelledError", "CheckpointError", "ConfigurationError",
        "CostLimitError", "DataFileError", "DatasetError", "GPTXAsyncError", "ItemStoppedError",
        "LoopThreadDiedError", "LoopThreadError", "MissingPackageError", "OutputValueError",
        "RequestTooLargeError", "ResponseTooLargeError", "RunCancelledError", "SchedulerError",
        "ServiceClosedError", "ServiceError", "ServiceStartError", "TimeoutError",
        "UnsupportedClientError", "VocabularyError",
    ],
    "gptx_async.testing": [
        "BadJSON", "BatchScheduler", "EmptyBody", "EmptyChoices", "FakeOpenAI", "FakeRateLimits",
        "Fault", "HTML", "HTTPFault", "NoChoices", "RecordedAnswer", "RecordedRequest", "Reply",
        "Reset", "Stall", "ToolCall", "TruncatedJSON", "call_tool", "canned", "digest", "echo",
        "fault_named", "lognormal", "serve", "sometimes",
    ],
}  # fmt: skip

HEAVY = {"aiohttp", "cerebras", "httpx", "httpx2", "openai", "symai", "tiktoken"}


@pytest.mark.parametrize("module_name", PUBLIC)
def test_the_public_names_are_these_and_each_of_them_is_found(module_name: str) -> None:
    module = importlib.import_module(module_name)
    assert sorted(module.__all__) == sorted(PUBLIC[module_name])
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        getattr(module, name)


@pytest.mark.parametrize("module_name", PUBLIC)
def test_the_import_loads_neither_symbolicai_nor_an_sdk(module_name: str) -> None:
    program = f"import json, sys, {module_name}; print(json.dumps(sorted(sys.modules)))"
    completed = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in json.loads(completed.stdout)}
    assert "gptx_async" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_a_class_name_is_used_once_in_the_package() -> None:
    count = Counter(
        node.name.lstrip("_")
        for path in Path(gptx_async.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert len(count) > 100
    assert [name for name, times in count.items() if times > 1] == []
