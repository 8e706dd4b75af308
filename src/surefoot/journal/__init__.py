"""What a run did, line by line, in a file that survives the run.

A journal is a JSON-lines file. Its first line is a header; every other line is an entry. A line
counts once its newline is on disk, so a run that is killed loses at most the line it was writing.
Numbers that are not finite travel as the strings ``"nan"``, ``"inf"`` and ``"-inf"``: JSON has
none, and every JSON reader in every language must be able to read a journal.
"""

from surefoot.journal.format import FORMAT_VERSION
from surefoot.journal.reader import Entry, JournalReader
from surefoot.journal.writer import JournalWriter

__all__ = ["FORMAT_VERSION", "Entry", "JournalReader", "JournalWriter"]
