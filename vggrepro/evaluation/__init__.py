"""Testing (Sections 3.2, 4): posteriors of the whole validation set, and the error rates that follow from them."""
