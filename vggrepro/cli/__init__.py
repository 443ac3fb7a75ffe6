"""The `vggrepro` command, one function a verb. Whatever is heavy is imported inside them."""
