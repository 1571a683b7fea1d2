"""symbolicai's configuration, read without importing symbolicai.

The import takes seconds, and creates a configuration file if there is none. The file is located by
symbolicai's own module `symai/backend/settings.py`, which can be loaded alone.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError

__all__ = ["FILE_NAME", "KEY", "MODEL", "Configuration", "read_configuration"]

FILE_NAME = "symai.config.json"
KEY = "NEUROSYMBOLIC_ENGINE_API_KEY"
MODEL = "NEUROSYMBOLIC_ENGINE_MODEL"


@dataclass(frozen=True)
class Configuration:
    """The configuration that symbolicai would use if it were imported here.

    Attributes:
        path: The file; None if there is none.
        model: The model's name; None if there is none.
        key: The API key; None if there is none.
        looked_at: The possible files, in the order in which symbolicai looks for them.
    """

    path: Path | None
    model: str | None
    key: str | None = field(repr=False)
    looked_at: tuple[Path, ...]


def read_configuration() -> Configuration:
    """Read the configuration that symbolicai would use with this working directory.

    Raises:
        ConfigurationError: symbolicai is not installed, or could not be imported with the file.
    """
    rules = _rules()
    looked_at = tuple(
        folder / FILE_NAME
        for folder in (rules._debug_dir, rules._env_config_dir, rules._home_config_dir)
    )
    path: Path = rules.get_config_path(FILE_NAME)
    if not path.is_file():
        return Configuration(None, None, None, looked_at)
    values = _read(path)
    if not values.get(KEY) and rules.config_dir != rules._home_config_dir:
        # symbolicai does the same, with a warning at its import.
        path = rules.get_config_path(FILE_NAME, fallback_to_home=True)
        values = _read(path) if path.is_file() else {}
    return Configuration(path, values.get(MODEL) or None, values.get(KEY) or None, looked_at)


def _rules() -> Any:
    found = importlib.util.find_spec("symai")
    folders = found.submodule_search_locations if found is not None else None
    if not folders:
        raise ConfigurationError("symbolicai is not installed. Install it: pip install symbolicai.")
    path = Path(folders[0], "backend", "settings.py")
    spec = importlib.util.spec_from_file_location("gptx_async-symai-settings", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigurationError(
            f"The installed symbolicai has no {path.name}. Install symbolicai 1.10 or newer, below "
            "2."
        )
    settings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    return settings.SymAIConfig()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} can't be read as JSON ({error}). Correct it: symbolicai can't be imported "
            "with it."
        ) from error
    missing = [name for name in (MODEL, KEY) if not isinstance(values, dict) or name not in values]
    if missing:
        raise ConfigurationError(
            f"{path} has no {missing[0]}. Add it, even if it is empty: symbolicai can't be "
            "imported without it."
        )
    return dict(values)
