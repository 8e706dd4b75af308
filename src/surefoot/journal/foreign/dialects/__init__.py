"""What is known of each format beforehand: how its lines look and what its words mean."""
