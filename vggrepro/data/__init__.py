"""Data: the path of every image from index to sampler, views, backend and tensor."""
