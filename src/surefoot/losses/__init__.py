"""surefoot.losses."""
