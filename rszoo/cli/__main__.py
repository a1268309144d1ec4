"""`python -m rszoo.cli`: the same as `rszoo`."""

from rszoo.cli.start import start_rszoo

if __name__ == "__main__":
    start_rszoo()
