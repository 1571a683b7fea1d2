from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import pytest

import gptx_async
from gptx_async.cli import demo
from gptx_async.cli import main as cli
from gptx_async.errors import ConfigurationError
from gptx_async.testing import Fault, fault_named
from support.child import DEADLINE


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start `gptx-async serve` on a free port; return the process and its base URL."""
    processes = []

    def start(*options: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gptx_async", "serve", "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def ask(base_url: str, text: str, key: str = "sk-test") -> str:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE) as response:
        answer: str = json.load(response)["choices"][0]["message"]["content"]
    return answer


def ask_many(base_url: str, count: int) -> tuple[list[int], Mapping[str, str]]:
    """Send `count` requests; return the statuses and the headers of the last answer."""
    statuses = []
    headers: Mapping[str, str] = {}
    for _ in range(count):
        try:
            body = json.dumps(
                {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": ""}]}
            )
            request = urllib.request.Request(
                f"{base_url}/chat/completions",
                body.encode(),
                {"Authorization": "Bearer sk-test", "Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=DEADLINE) as response:
                statuses.append(response.status)
                headers = dict(response.headers)
        except urllib.error.HTTPError as error:
            statuses.append(error.code)
            headers = dict(error.headers)
            error.close()
    return statuses, headers


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("run", "doctor", "demo", "serve"))],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import sys
from gptx_async.cli.main import main
try:
    main({arguments})
except SystemExit as end:
    assert end.code == 0
heavy = {{"symai", "openai", "aiohttp", "rich", "tqdm", "asyncio", "pandas", "numpy", "pyarrow",
         "structlog", "packaging", "sqlite3", "concurrent.futures", "ssl", "csv", "logging"}}
print("heavy:", heavy & set(sys.modules))
"""
    child = run("-c", program)
    assert child.returncode == 0, child.stderr
    assert "usage: gptx-async" in child.stdout
    assert child.stdout.endswith("heavy: set()\n")


def test_module_prints_version() -> None:
    child = run("-m", "gptx_async", "--version")
    assert (child.returncode, child.stdout) == (0, f"gptx-async {gptx_async.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: SUBCOMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["demo", "--documents", "0"], "'0' is not a whole number above 0"),
        (["demo", "--latency", "nan"], "'nan' is not a number of seconds, 0 or more"),
        (["serve", "--latency", "-1"], "'-1' is not a number of seconds, 0 or more"),
        (["serve", "--latency", "soon"], "'soon' is not a number of seconds, 0 or more"),
        (["serve", "--port", "65536"], "'65536' is not a port: a whole number from 0 to 65535"),
        (["serve", "--reply", "shout"], "invalid choice: 'shout'"),
        (["serve", "--fault", "reset"], "'reset' is not KIND:SHARE"),
        (["serve", "--fault", "reset:2"], "'reset:2' is not KIND:SHARE"),
        (["serve", "--requests-per-minute", "0"], "'0' is not a number above 0"),
        (["serve", "--dance"], "unrecognized arguments: --dance"),
        (["run", "--input", "-", "--output", "-"], "one of the arguments --expression --prompt"),
        (["run", "--prompt", "{a}", "--expression", "a:b"], "not allowed with argument"),
        (["run", "--prompt", "{a}", "--input", "-"], "arguments are required: --output"),
        (["run", "--price", "1", "-1"], "'-1' is not a number of US$, 0 or more"),
        (["bench"], "invalid choice: 'bench'"),
        (["doctor", "--timeout", "nan"], "'nan' is not a number above 0"),
    ],
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("exit_code", [0, 1])
def test_demo_returns_its_exit_code(exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def run_demo(**options: Any) -> int:
        given.update(options)
        return exit_code

    monkeypatch.setattr(demo, "run_demo", run_demo)
    arguments = ["demo", "--live", "--documents", "3", "--latency", "0.5", "--model", "gpt-4o"]
    assert cli.main(arguments) == exit_code
    assert given == {"live": True, "count": 3, "latency": 0.5, "model": "gpt-4o"}


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (ConfigurationError("No key."), 2, "gptx-async demo: No key.\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException,
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_options: Any) -> int:
        raise error

    monkeypatch.setattr(demo, "run_demo", fail)
    assert cli.main(["demo"]) == exit_code
    assert capsys.readouterr() == ("", message)


def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_demo", lambda: 0)
    with pytest.raises(TypeError):
        cli.main(["demo"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_answers_until_signal(
    number: signal.Signals, serve: Callable[..., tuple[subprocess.Popen[str], str]]
) -> None:
    process, base_url = serve()
    assert ask(base_url, "Hello") == ask(base_url, "Hello") != ask(base_url, "Good-bye")
    process.send_signal(number)
    output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, output, errors) == (0, "", "")


def test_serve_takes_options(serve: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    _, base_url = serve("--reply", "echo", "--api-key", "sk-1", "--api-key", "sk-2")
    assert ask(base_url, "Hello", "sk-1") == ask(base_url, "Hello", "sk-2") == "Hello"
    with pytest.raises(urllib.error.HTTPError, match="401") as caught:
        ask(base_url, "Hello", "sk-3")
    caught.value.close()


def test_serve_keeps_limits(
    serve: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    limits = ("--requests-per-minute", "1", "--tokens-per-minute", "9e9", "--burst-seconds", "120")
    for hide in ((), ("--hide-limits",)):
        _, base_url = serve(*limits, *hide)
        statuses, headers = ask_many(base_url, 5)
        assert statuses[:2] == [200, 200]
        assert 429 in statuses
        assert ("x-ratelimit-limit-requests" in headers) == (not hide)


def test_serve_limits_concurrent_requests(
    serve: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    process, base_url = serve("--max-concurrent", "1", "--latency", "3600")
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_many, base_url, 1) for _ in range(4)]
        refused = [*itertools.islice(as_completed(asking, DEADLINE), 3)]
        assert [each.result()[0] for each in refused] == [[503]] * 3
        assert sum(not each.done() for each in asking) == 1
        process.kill()


def test_serve_has_faults_by_chance(
    serve: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    faults = ("--fault", "500:0.3", "--fault", "insufficient-quota:0.3")
    statuses = []
    for seed in ("1", "1", "2"):
        _, base_url = serve(*faults, "--seed", seed)
        statuses.append(ask_many(base_url, 60)[0])
    assert set(statuses[0]) == {200, 500, 429}
    assert statuses[0] == statuses[1] != statuses[2]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["no-such:0.1"], "There is no fault 'no-such'. Choose a status from 400 to 599, or one"),
        (["200:0.1"], "There is no fault '200'"),
        (["500:0.6", "reset:0.5"], "are [0.6, 0.5]. Give at most 1 in all"),
    ],
)
def test_serve_says_which_faults_there_are(
    faults: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *(f"--fault={fault}" for fault in faults)]) == 2
    assert message in capsys.readouterr().err


def test_each_fault_that_help_names_is_there() -> None:
    child = run("-m", "gptx_async", "serve", "--help")
    names = re.search(r"kinds are (.*?);", " ".join(child.stdout.split()))
    assert names is not None
    for name in names[1].replace("- ", "-").split(", "):
        assert isinstance(fault_named(name), Fault)


def test_serve_on_taken_port_says_what_to_do(
    serve: Callable[..., tuple[subprocess.Popen[str], str]],
) -> None:
    _, base_url = serve()
    port = base_url.rpartition(":")[2].removesuffix("/v1")
    child = run("-m", "gptx_async", "serve", "--port", port)
    assert (child.returncode, child.stdout) == (2, "")
    assert child.stderr.startswith(f"gptx-async serve: The server can't listen on port {port} (")
    assert child.stderr.count("\n") == 1
