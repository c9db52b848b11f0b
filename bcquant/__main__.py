"""`python -m bcquant` is the console script."""

from bcquant.cli import entry

if __name__ == "__main__":
    entry()
