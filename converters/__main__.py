"""`python -m converters`: the same as `rszoo-convert`."""

from rszoo.cli.convert import main

if __name__ == "__main__":
    main()
