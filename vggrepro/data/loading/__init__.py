"""Loading: turns views into tensors with DALI or torchvision, in separate processes, ahead of use."""
