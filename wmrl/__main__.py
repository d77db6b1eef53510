"""`python -m wmrl`: the same as `wmrl`."""

from wmrl.cli import main

if __name__ == "__main__":
    main()
