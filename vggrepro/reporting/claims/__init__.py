"""What the paper claims, tested."""
