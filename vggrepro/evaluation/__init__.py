"""Testing (Sections 3.2 and 4): posteriors of the validation set and the error rates computed from them."""
