"""`rszoo`: all commands in one place, each with its examples. Nothing else is here."""

from __future__ import annotations

from collections.abc import Callable

from rszoo.cli.bench import BENCH_EXAMPLES, bench
from rszoo.cli.cache import cache_app, manifest_app, prefetch
from rszoo.cli.console import Version, examples, new_app, run
from rszoo.cli.convert import convert
from rszoo.cli.evaluate import evaluate
from rszoo.cli.hub import publish, pull, push
from rszoo.cli.models import info, list_models_command
from rszoo.cli.predict import predict
from rszoo.cli.recipes import recipes_app
from rszoo.cli.tfrecords import make_tfrecords
from rszoo.cli.train import TRAIN_EXAMPLES, TRAIN_SETTINGS, train
from rszoo.cli.verify import demo, verify

_COMMANDS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "list": (list_models_command, ("rszoo list", 'rszoo list "*-152-*" --json')),
    "info": (
        info,
        ("rszoo info resnet-rs-152-i224", "rszoo info hf-hub:me/mine --json", "rszoo info my-model --tensors"),
    ),
    "convert": (
        convert,
        (
            "rszoo convert --ckpt resnet-rs-101-i192.tar.gz",
            "rszoo convert --ckpt my-model --to tf1 --output my-checkpoint",
        ),
    ),
    "verify": (verify, ("rszoo verify my-model", "rszoo verify my-model --ckpt resnet-rs-50-i160.tar.gz")),
    "predict": (predict, ("rszoo predict my-model photo.jpg", "rszoo predict my-model a.jpg b.png --top 3 --json")),
    "demo": (demo, ("rszoo demo", "rszoo demo --output demo-model")),
    "prefetch": (
        prefetch,
        ('rszoo prefetch "*-i256"', "rszoo prefetch resnet-rs-50-i160 --output for-the-cluster"),
    ),
    "push": (push, ("rszoo push my-model me/resnet-rs-152-i256 --dry-run", "rszoo push my-model me/mine --private")),
    "publish": (
        publish,
        ('rszoo publish "resnet-rs-*" --to my-org', "rszoo publish resnet-rs-demo --to me --raw"),
    ),
    "pull": (pull, ("rszoo pull hf-hub:me/mine", "rszoo pull me/mine@main --output my-model")),
    "train": (train, TRAIN_EXAMPLES),
    "eval": (
        evaluate,
        (
            "rszoo eval resnet-rs-152-i256 --data /data/imagenet --output results",
            "rszoo eval runs/demo/model --data digits --record",
        ),
    ),
    "tfrecords": (
        make_tfrecords,
        ("rszoo tfrecords my-images my-tfrecords", "rszoo tfrecords my-images my-tfrecords --shards 16"),
    ),
    "bench": (bench, BENCH_EXAMPLES),
}

_ABOUT = "ResNet-RS checkpoints, converted and verified, in PyTorch and Keras."
app = new_app(_ABOUT)


@app.callback(help=_ABOUT)
def options(version: Version = False) -> None:
    """Take the options that stand before a command."""


for _name, (_command, _examples) in _COMMANDS.items():
    _settings = TRAIN_SETTINGS if _command is train else {}
    app.command(_name, epilog=examples(*_examples), context_settings=_settings)(_command)
app.add_typer(recipes_app, name="recipes")
app.add_typer(cache_app, name="cache")
app.add_typer(manifest_app, name="manifest")


def main() -> None:
    """Entry point of `rszoo`."""
    run(app)


if __name__ == "__main__":
    main()
