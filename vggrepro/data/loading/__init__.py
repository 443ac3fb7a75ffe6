"""Views become tensors: by DALI or torchvision, in processes of their own, ahead of their use."""
