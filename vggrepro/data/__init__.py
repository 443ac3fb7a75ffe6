"""One way for bytes: index -> plan -> backend -> tensor."""
