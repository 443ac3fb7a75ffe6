"""Images: where they are, what they are called, whether they can be read, and their index."""
