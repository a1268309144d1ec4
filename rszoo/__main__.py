"""`python -m rszoo`: the same as `rszoo`."""

from rszoo.cli.main import main

if __name__ == "__main__":
    main()
