"""`python -m vggrepro`, and `torchrun -m vggrepro` for several ranks."""

from vggrepro.cli import main

if __name__ == "__main__":
    main()
