"""`python -m rszoo.train`: the same as `rszoo train`, for torchrun, which starts modules."""

from rszoo.cli.console import examples, new_app, run
from rszoo.cli.train import TRAIN_EXAMPLES, TRAIN_SETTINGS, train

if __name__ == "__main__":
    app = new_app("Train a model by a recipe.")
    app.command(epilog=examples(*TRAIN_EXAMPLES), context_settings=TRAIN_SETTINGS)(train)
    run(app)
