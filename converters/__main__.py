"""`python -m converters`: the same as `rszoo-convert`."""

from rszoo.cli.start import start_convert

if __name__ == "__main__":
    start_convert()
