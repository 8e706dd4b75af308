"""surefoot.journal."""
