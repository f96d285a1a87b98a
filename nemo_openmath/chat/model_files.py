"""The one reader of the JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError

_REMEDY = "copy or download it again"


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file of a model folder holds; empty where there is no such file. Raises
    UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", file=path, remedy=_REMEDY) from None
    except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8
        raise UserError(f"not JSON ({error})", file=path, remedy=_REMEDY) from None
    if not isinstance(content, dict):
        raise UserError("not a JSON object", file=path, remedy=_REMEDY)
    return content
