"""``python -m cloister``: the command line."""

from cloister.cli import main

if __name__ == "__main__":
    main()
