"""takes files, data frames, dicts and exports, gives Runs: the validated table of what was observed."""

from isoloss.runs.checks import check, drop
from isoloss.runs.finding import CODES, Finding
from isoloss.runs.reader import from_rows, read
from isoloss.runs.table import Removed, Runs

__all__ = ["CODES", "Finding", "Removed", "Runs", "check", "drop", "from_rows", "read"]
