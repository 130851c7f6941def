"""``sekisho settings``: what counts, and where it came from."""

from typing import Any

from pydantic import SecretStr

from sekisho.cli.output import AsJson, masked_url, show_rows
from sekisho.settings import PREFIX, Settings


def settings(as_json: AsJson = False) -> None:
    """Show the settings as they count now, and where each came from. User names and passwords are masked."""
    read = Settings()
    rows = []
    for name in Settings.model_fields:
        value = _shown(getattr(read, name), as_text=not as_json)
        origin = "environment" if name in read.model_fields_set else "default"
        rows.append({"variable": PREFIX + name.upper(), "value": value, "from": origin})
    show_rows(rows, as_json=as_json, empty="")


def _shown(value: Any, *, as_text: bool) -> Any:
    """For programs numbers stay numbers, lists lists, and none is null."""
    match value:
        case SecretStr():
            return masked_url(value.get_secret_value())
        case tuple():
            parts = [str(part) for part in value]
            return (",".join(parts) or "none") if as_text else parts
        case None:
            return "none" if as_text else None
        case _:
            return value
