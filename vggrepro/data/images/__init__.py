"""Images: finding, labelling, inspecting and indexing them."""
