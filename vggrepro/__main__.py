"""Entry point of `python -m vggrepro`, and of `torchrun -m vggrepro` for several ranks."""

from vggrepro.cli.main import main

if __name__ == "__main__":
    main()
