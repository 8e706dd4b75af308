"""surefoot.cli."""
