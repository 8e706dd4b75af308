"""surefoot.doctor."""
