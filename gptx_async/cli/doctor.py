"""`gptx-async doctor`: find problems on this machine before a run does.

Each check examines one thing and reports ok, a warning or a failure, with a remedy. Nothing is
changed: symbolicai is imported in a sandbox because its import creates files. No key is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import re
import resource
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import ConfigurationError
from ..symbolicai.configuration import FILE_NAME, KEY, MODEL, Configuration, read_configuration
from ..symbolicai.vocabularies import VOCABULARIES, tiktoken_cache_dir, vocabularies_available

__all__ = ["Check", "Engine", "Subject", "engine_of", "examine"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"

SPARE_FILES = 64
"""How many open files a process needs besides one connection per request."""

CHAT_ENGINE = "GPTXChatEngine"

_PREFIX = re.compile(r"^(cerebras|groq|openrouter|responses):")

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was examined.
        status: 'ok', 'warn' or 'fail'.
        text: What was found.
        remedy: What to do; empty if there is nothing to do.
    """

    name: str
    status: Status
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Subject:
    """The settings that the checks examine.

    Attributes:
        model: The model; None if it is not configured.
        key: The API key; None if it is not configured.
        key_from: Where the key was looked for.
        base_url: The base URL of the API.
        max_concurrency: How many requests may be in flight.
        timeout: How long to wait for the base URL, in seconds.
        is_built_in: Whether the engine has this base URL built in, so that it can't be set.
    """

    model: str | None
    key: str | None
    key_from: str
    base_url: str
    max_concurrency: int
    timeout: float
    is_built_in: bool = False

    def __repr__(self) -> str:
        return f"Subject(model={self.model!r})"  # the base URL may contain a password, too

    @property
    def shown_url(self) -> str:
        """The base URL without user, password and query."""
        return _without_secrets(self.base_url)

    @property
    def asked_model(self) -> str | None:
        """The name that the API has for the model, without symbolicai's prefix for the engine."""
        return _PREFIX.sub("", self.model) if self.model else None


class Engine(NamedTuple):
    """The symbolicai engine for a model.

    Attributes:
        name: The name of its class.
        own_tries: How often the engine itself tries a query; 1 if it does not retry.
        problem: Why the engine can't use the model, although it supports it; None if it can.
        base_url: The built-in base URL; None if the engine uses OpenAI's or a configured one.
    """

    name: str
    own_tries: int
    problem: str | None
    base_url: str | None


def examine(
    *,
    model: str | None = None,
    api_key_env: str | None = None,
    base_url: str | None = None,
    max_concurrency: int = 256,
    timeout: float = 10.0,
    as_json: bool = False,
) -> int:
    """Run all checks and print the results, one line each.

    Args:
        model: The model; None for the one in symbolicai's configuration.
        api_key_env: The environment variable with the key; None for the key in symbolicai's
            configuration.
        base_url: The base URL of the API; None for OPENAI_BASE_URL, or OpenAI's own.
        max_concurrency: How many requests may be in flight.
        timeout: How long to wait for the base URL, in seconds.
        as_json: Print one JSON object at the end in place of lines.

    Returns:
        The exit code: 1 if a check failed, else 0.
    """
    checks = []
    for check in _checks(model, api_key_env, base_url, max_concurrency, timeout):
        checks.append(check)
        if not as_json:
            print(_line(check), flush=True)
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    else:
        print(f"{len(checks)} checks: {failed} failed, {warned} with a warning")
    return 1 if failed else 0


def _checks(
    model: str | None,
    api_key_env: str | None,
    base_url: str | None,
    max_concurrency: int,
    timeout: float,
) -> Iterator[Check]:
    """Yield the results. Each check may rely on the results of the checks before it."""
    yield from _check_packages()
    configuration, check = _check_configuration(are_given=bool(model and api_key_env))
    yield check
    key, key_from = _find_key(configuration, api_key_env)
    subject = Subject(
        model=model or configuration.model,
        key=key,
        key_from=key_from,
        base_url=base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL,
        max_concurrency=max_concurrency,
        timeout=timeout,
    )
    yield _check_key(subject)
    engine, check = _check_model(subject)
    yield check
    if engine is not None and engine.base_url is not None:
        if base_url is not None:
            yield Check(
                "base URL given",
                "fail",
                f"{engine.name} always uses {engine.base_url}",
                "Leave --base-url out: it is for engines that use OpenAI's API.",
            )
        subject = replace(subject, base_url=engine.base_url, is_built_in=True)
    yield _check_vocabulary(subject, engine)
    yield from _check_private_names()
    yield _check_retries(engine)
    yield _check_proxies(subject)
    yield _check_open_files(subject)
    yield from _check_base_url(subject, engine)


def _check_packages() -> Iterator[Check]:
    yield Check("python", "ok", platform.python_version())
    try:
        requirements = importlib.metadata.requires("gptx_async") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            "packages",
            "warn",
            "gptx_async is on the path but not installed, so its requirements are unknown",
            "Install it: pip install gptx_async.",
        )
    else:
        for text in requirements:
            if "extra ==" not in text:
                yield _check_requirement(text)
    yield _check_transport()


def _check_requirement(text: str) -> Check:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(
            requirement.name, "fail", "not installed", f"Install it: pip install '{text}'."
        )
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(
            requirement.name,
            "fail",
            f"{version}, but gptx_async needs {requirement.specifier}",
            f"Install another version: pip install '{text}'.",
        )
    return Check(requirement.name, "ok", version)


def _check_transport() -> Check:
    """Check that the SDK can use aiohttp, by building a client and closing it."""
    remedy = "Install it: pip install 'openai[aiohttp]'."
    try:
        import openai

        from ..transport.exchange import is_known

        client = openai.DefaultAioHttpClient()
        asyncio.run(client.aclose())
    except (ImportError, RuntimeError) as error:
        return Check("transport", "fail", f"the SDK can't use aiohttp ({error})", remedy)
    httpx = next(base.__module__ for base in type(client).__mro__ if base.__name__ == "AsyncClient")
    name = httpx.partition(".")[0]
    text = f"{name} {importlib.metadata.version(name)} over aiohttp {_version_of('aiohttp')}"
    if not is_known():
        text += ", which this package does not know: each call takes the SDK's slower path"
        return Check("transport", "warn", text, "Install aiohttp 3.14: pip install 'aiohttp<3.15'.")
    return Check("transport", "ok", text)


def _check_private_names() -> Iterator[Check]:
    """Check that the private names of other packages that this package uses are as expected.

    symbolicai's names are checked only if symbolicai was imported to find the engine of the model.
    """
    from ..private_names import missing
    from ..transport import private_names as transport

    names = list(transport.NAMES)
    if "symai" in sys.modules:
        from ..symbolicai import private_names as symbolicai

        names += symbolicai.NAMES
    gone = missing(names)
    for name in gone:
        yield Check(
            "private names",
            "warn",
            f"{name.package}'s {name.name} is not as expected: {name.without}",
            "Install a newer gptx_async, or an older version of that package.",
        )
    packages = {each.package: "" for each in names}
    for package in packages:
        packages[package] = ", ".join(each.name for each in names if each.package == package)
    if not gone:
        shown = "; ".join(f"{package}: {listed}" for package, listed in packages.items())
        yield Check("private names", "ok", f"as expected: {shown}")


def _check_configuration(*, are_given: bool) -> tuple[Configuration, Check]:
    """Find symbolicai's configuration. It may be missing if the options give everything."""
    name = "configuration"
    try:
        configuration = read_configuration()
    except ConfigurationError as error:
        text, _, remedy = str(error).partition(". ")
        return Configuration(None, None, None, ()), Check(name, "fail", text, remedy)
    if configuration.path is not None:
        return configuration, Check(name, "ok", str(configuration.path))
    return configuration, Check(
        name,
        "warn" if are_given else "fail",
        f"there is no {FILE_NAME} here, and none in "
        + " or ".join(str(path.parent) for path in configuration.looked_at[1:]),
        f'Create one: {{"{MODEL}": "gpt-4o-mini", "{KEY}": "..."}}.',
    )


def _find_key(configuration: Configuration, api_key_env: str | None) -> tuple[str | None, str]:
    if api_key_env is not None:
        return os.environ.get(api_key_env) or None, api_key_env
    return configuration.key, f"{KEY} in {configuration.path or FILE_NAME}"


def _check_key(subject: Subject) -> Check:
    if not subject.key:
        hint = ""
        if os.environ.get("OPENAI_API_KEY") and subject.key_from != "OPENAI_API_KEY":
            hint = " OPENAI_API_KEY is set: --api-key-env OPENAI_API_KEY uses it."
        return Check(
            "key",
            "fail",
            f"none: {subject.key_from}",
            f"Set it, or name an environment variable that has the key with --api-key-env.{hint}",
        )
    if subject.key != subject.key.strip() or not subject.key.isprintable():
        return Check(
            "key",
            "fail",
            f"present, but with spaces or control characters: {subject.key_from}",
            "Remove them: HTTP headers can't contain them.",
        )
    return Check("key", "ok", f"present: {subject.key_from}")


def _check_model(subject: Subject) -> tuple[Engine | None, Check]:
    if not subject.model:
        return None, Check(
            "model",
            "fail",
            "none",
            f"Set {MODEL} in {FILE_NAME}, or give --model, for example gpt-4o-mini.",
        )
    try:
        engine = engine_of(subject.model)
    except ConfigurationError as error:
        text, _, remedy = str(error).partition(". ")
        return None, Check("model", "fail", f"{subject.model}: {text}", remedy)
    except Exception as error:  # importing all of symbolicai's engines can raise anything
        return None, Check(
            "model",
            "fail",
            f"{subject.model}: symbolicai can't be imported ({type(error).__name__}: {error})",
            "Fix the import: python -c 'import symai' shows where it fails.",
        )
    text = f"{subject.model}: {engine.name}"
    if engine.problem is not None:
        return engine, Check(
            "model", "fail", f"{text} reports: {engine.problem}", "Give another model."
        )
    return engine, Check("model", "ok", text)


def engine_of(model: str) -> Engine:
    """Return the symbolicai engine for a model, as `install` chooses it.

    Imports symbolicai in a sandbox.

    Raises:
        ConfigurationError: No engine supports the model, or its calls can't be asynchronous.
    """
    from .demo import symbolicai_sandbox

    folder = Path(sys.prefix, ".symai")
    with (
        _made_and_removed(folder),
        symbolicai_sandbox(model),
        contextlib.redirect_stdout(sys.stderr),
    ):
        from ..symbolicai.generation import engine_classes

        engine_class = engine_classes.engine_class_of(model)
        return Engine(
            engine_class.__name__,
            _own_tries(engine_class),
            _problem_of(engine_class, model),
            _base_url_of(engine_class, model),
        )


@contextlib.contextmanager
def _made_and_removed(folder: Path) -> Iterator[None]:
    """Remove a folder if it did not exist before the block.

    symbolicai's import creates it. Later imports would then look for the configuration there.
    """
    was_there = folder.exists()
    try:
        yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # it is not empty, so it stays
                folder.rmdir()


def _own_tries(engine_class: Any) -> int:
    """Return the tries of symbolicai's `retry` decorator on a method of an engine; 1 without it."""
    tries = [
        inspect.getclosurevars(method).nonlocals.get("tries")
        for method in vars(engine_class).values()
        if inspect.isfunction(method) and hasattr(method, "__wrapped__")
    ]
    return max((count for count in tries if isinstance(count, int)), default=1)


def _problem_of(engine_class: Any, model: str) -> str | None:
    """Return why the chat engine rejects a model that it lists: it lacks the model's limits."""
    if engine_class.__name__ != CHAT_ENGINE:
        return None
    engine = engine_class.__new__(engine_class)  # building it might download a vocabulary
    engine.model = model
    try:
        engine.api_max_context_tokens()
        engine.api_max_response_tokens()
        engine._resolve_token_config()
    except (NotImplementedError, ValueError) as error:
        return str(error).split(". ")[0] or type(error).__name__
    except AttributeError:  # a version of symbolicai with other names
        return None
    return None


def _base_url_of(engine_class: Any, model: str) -> str | None:
    """Return the base URL that is built into an engine, from its client; None if there is none."""
    from ..symbolicai.generation import engine_classes

    known = engine_classes.SUPPORTED.get(engine_class.__name__)
    if known is None or not known.has_own_url:
        return None
    return str(engine_class("none", model).client.base_url)


def _check_vocabulary(subject: Subject, engine: Engine | None) -> Check:
    if engine is not None and engine.name != CHAT_ENGINE:
        return Check("vocabulary", "ok", f"not checked: {engine.name} may have its own")
    names = {"o200k_base"}
    with contextlib.suppress(KeyError):
        from tiktoken.model import encoding_name_for_model

        names.add(encoding_name_for_model(subject.model or "gpt-4o-mini"))
    folder = tiktoken_cache_dir()
    missing = [
        each.name
        for each in VOCABULARIES
        if each.name in names and (folder is None or not each.is_in(folder))
    ]
    if not missing:
        return Check("vocabulary", "ok", f"{', '.join(sorted(names))}: in {folder}")
    if vocabularies_available() and folder is not None:
        return Check("vocabulary", "ok", f"{', '.join(missing)}: unpacked when it is first needed")
    return Check(
        "vocabulary",
        "warn",
        f"{', '.join(missing)}: to be downloaded by tiktoken when it is first needed",
        "On a machine without internet access, pip install 'gptx_async[offline]'"
        + ("." if folder else ", and set TIKTOKEN_CACHE_DIR: the cache is turned off."),
    )


def _check_retries(engine: Engine | None) -> Check:
    if engine is not None and engine.own_tries > 1:
        return Check(
            "retries",
            "warn",
            f"{engine.name} tries {engine.own_tries} times by itself, and gptx_async retries in "
            "each try",
            "Set client_max_retries=0 and a low rate_limit_patience.",
        )
    return Check("retries", "ok", "one layer, gptx_async's; the SDK's retries are off")


def _check_proxies(subject: Subject) -> Check:
    url = urllib.parse.urlsplit(subject.base_url)
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy:
        return Check("proxies", "ok", "none for the base URL")
    if urllib.request.proxy_bypass(url.hostname or ""):
        return Check("proxies", "ok", f"none for {url.hostname}, because of NO_PROXY")
    text = f"{url.hostname} is reached through {_without_secrets(proxy)}"
    if _is_local(url.hostname):
        return Check(
            "proxies",
            "fail",
            f"{text}, which does not know this machine",
            f"Set NO_PROXY={url.hostname}.",
        )
    return Check(
        "proxies",
        "warn",
        text,
        "Check that it allows many connections and slow answers.",
    )


def _check_open_files(subject: Subject) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = subject.max_concurrency + SPARE_FILES
    text = f"{'no limit' if soft == resource.RLIM_INFINITY else f'{soft:,} at once'}"
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Check("open files", "ok", text)
    can_be_raised = hard == resource.RLIM_INFINITY or hard >= needed
    return Check(
        "open files",
        "fail",
        f"{text}, but {subject.max_concurrency:,} requests in flight (max_concurrency) need about "
        f"{needed:,}",
        (f"Raise it: ulimit -n {needed}; or set" if can_be_raised else "Set")
        + f" max_concurrency to {max(1, soft - SPARE_FILES)} or less.",
    )


def _check_base_url(subject: Subject, engine: Engine | None) -> Iterator[Check]:
    if engine is not None and engine.name == "CerebrasEngine":
        yield Check("base URL", "ok", "not checked: Cerebras's SDK has its own")
        return
    url = urllib.parse.urlsplit(subject.base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        yield Check(
            "base URL",
            "fail",
            f"{subject.shown_url} is not a URL",
            "Set OPENAI_BASE_URL to a URL such as https://api.openai.com/v1.",
        )
        return
    if url.scheme == "http" and not _is_local(url.hostname):
        yield Check(
            "encryption",
            "warn",
            f"the key goes to {url.hostname} unencrypted (http)",
            "Use https.",
        )
    yield _ask_base_url(subject)


def _ask_base_url(subject: Subject) -> Check:
    """Request the list of models as the engine sends calls, with its proxies and limits."""
    import openai

    name, url = "base URL", subject.shown_url
    try:
        models = asyncio.run(_models_of(subject))
    except (openai.APITimeoutError, TimeoutError):
        return Check(
            name,
            "fail",
            f"{url} does not answer within {subject.timeout:g} s",
            "Check the network, proxies and firewalls, or give a longer --timeout.",
        )
    except openai.APIConnectionError as error:
        return Check(
            name,
            "fail",
            f"{url} can't be reached ({_cause_of(error)})",
            ("Check" if subject.is_built_in else "Correct OPENAI_BASE_URL, or check")
            + " the network, proxies and certificates.",
        )
    except openai.APIStatusError as error:
        return _check_status(subject, error.status_code)
    except ImportError as error:  # httpx needs a package for a SOCKS proxy
        return Check(name, "fail", str(error), "Install it: pip install socksio.")
    except (
        Exception
    ) as error:  # the SDK raises various errors for an answer that is not a list of models
        return Check(
            name,
            "fail",
            f"{url} answers, but not as OpenAI's API ({type(error).__name__})",
            "Check that no proxy answers in its place."
            if subject.is_built_in
            else "Correct OPENAI_BASE_URL; it usually ends in /v1.",
        )
    if models and subject.asked_model not in (None, *models):
        return Check(
            name,
            "warn",
            f"{url} answers, but among its {len(models)} models does not list "
            f"{subject.asked_model}",
            "Check the model's name for this server.",
        )
    return Check(name, "ok", f"{url} answers")


async def _models_of(subject: Subject) -> list[str]:
    """Return the names of the models that the base URL lists."""
    import openai

    from ..transport.client_cache import ClientCache
    from ..transport.settings import settings_of

    key = (subject.key or "").strip() or "none"
    with openai.OpenAI(
        api_key=key, base_url=subject.base_url, timeout=subject.timeout, max_retries=0
    ) as like:
        settings = settings_of(like)
    clients = ClientCache()
    try:
        client = clients.take(settings, subject.timeout).resource
        listed = await client.attempt(("models", "list"), (), {}, subject.timeout, retries=0)
    finally:
        await clients.close()
    return [model.id for model in listed.value.data]


def _check_status(subject: Subject, status: int) -> Check:
    name, url = "base URL", subject.shown_url
    if status in (401, 403) and not subject.key:
        return Check(name, "ok", f"{url} answers, and requires a key")
    if status in (401, 403):
        return Check(name, "fail", f"{url} rejects the key (HTTP {status})", "Set a valid key.")
    if status == 429:
        return Check(
            name,
            "warn",
            f"{url} answers HTTP 429: too many requests, or the quota is used up",
            "Check the account's limits and credit.",
        )
    if status >= 500:
        return Check(
            name, "warn", f"{url} answers HTTP {status}", "It may be down: try again later."
        )
    return Check(
        name,
        "warn",
        f"{url} answers HTTP {status} to the request for its models",
        "Check that the URL is that of an OpenAI-compatible API; it usually ends in /v1.",
    )


def _cause_of(error: BaseException) -> str:
    """Return the text of the deepest cause of an SDK error that has a text."""
    texts = [str(error)]
    cause = error.__cause__
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    return next(text for text in reversed(texts) if text)


def _without_secrets(url: str) -> str:
    """Return a URL without user, password and query."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "a text"
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def _is_local(host: str | None) -> bool:
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host or "") is not None


def _version_of(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of no known version"


def _line(check: Check) -> str:
    line = f"{check.status:<5} {check.name:<14} {check.text}"
    return f"{line}\n{'':<21}{check.remedy}" if check.remedy else line
