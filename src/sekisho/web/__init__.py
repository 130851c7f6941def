"""HTTP: the only place that knows its words. ``Sekisho`` is the whole server, to run or to mount."""

from sekisho.settings import Settings
from sekisho.storage.rows import TheftRecord
from sekisho.web.app import Sekisho

__all__ = ["Sekisho", "Settings", "TheftRecord"]
