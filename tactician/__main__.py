"""`python -m tactician` is the command `tactician`."""

from tactician.cli import main

if __name__ == "__main__":
    main()
