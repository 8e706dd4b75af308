"""The ``surefoot`` command."""

from surefoot.cli.main import main

__all__ = ["main"]
