"""One way for bytes: index -> sampler -> views -> backend -> tensor."""
