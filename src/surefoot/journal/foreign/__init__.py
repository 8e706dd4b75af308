"""Other people's logs, and our own journal, as columns over steps and lines that are evidence.

:func:`read_log` takes any file; one small file here knows each format, and what none of them
knows is learned from the text itself.
"""

from surefoot.journal.foreign.read import read_log

__all__ = ["read_log"]
