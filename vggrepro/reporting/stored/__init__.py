"""What runs and committed evidence have stored, as reports see it."""
