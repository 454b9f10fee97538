"""The password of a Redis, from where it is named: no configuration and no manifest holds it."""

from __future__ import annotations

import os
from pathlib import Path

from recsys_llm.errors import ConfigError


def named_password(variable: str | None, file: Path | None, *, where: str) -> str | None:
    """Return the password in an environment variable or in a file; None where neither is named.

    Parameters
    ----------
    where
        What names them, for messages.

    Raises
    ------
    ConfigError
        The variable is not set, or the file can't be read.
    """
    if variable is not None:
        if not os.environ.get(variable):
            raise ConfigError(f"{where}: password_env names {variable}, which is not set; set it")
        return os.environ[variable]
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ConfigError(
                f"{where}: password_file {file}: {error.strerror}; put the password there, or name another file"
            ) from None
    return None
