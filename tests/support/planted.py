"""A checkpoint in which somebody has planted a pickle."""

from __future__ import annotations

import pickle
import sqlite3
from pathlib import Path
from typing import Any

__all__ = ["Attack", "change", "plant"]


def change(path: Path, *statements: tuple[str, tuple[Any, ...]]) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for statement, values in statements:
            connection.execute(statement, values)
    connection.close()


class Attack:
    """Unpickling it creates a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


def plant(path: Path, proof: Path) -> None:
    pickled = pickle.dumps(Attack(proof))
    change(path, ("UPDATE results SET format = 'pickle', value = ?", (pickled,)))
