"""`rszoo`: all commands in one place. Each imports what it needs when it runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from rszoo.cli.bench import BENCH_EXAMPLES, bench
from rszoo.cli.cache import cache_app, manifest_app, prefetch
from rszoo.cli.console import FrameworkChoice, Json, examples, load_frameworks, new_app, print_json, run
from rszoo.cli.evaluate import evaluate
from rszoo.cli.hub import publish, pull, push
from rszoo.cli.recipes import recipes_app
from rszoo.cli.tfrecords import make_tfrecords
from rszoo.cli.train import TRAIN_EXAMPLES, train
from rszoo.errors import SourceNotFoundError, VerificationError
from rszoo.terminal import printable, table

app = new_app("ResNet-RS checkpoints, converted and verified, in PyTorch and Keras. See also: rszoo-convert --help")

Model = Annotated[str, typer.Argument(help="Model folder or registered name.")]


@app.command("list", epilog=examples("rszoo list", 'rszoo list "*-152-*" --json'))
def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as '*-i256'.")] = "*", as_json: Json = False
) -> None:
    """List the registered models."""
    from rszoo.cache.describe import count_parameters, describe_entry
    from rszoo.registry.manifest import get_entry, list_models

    entries = [get_entry(name) for name in list_models(pattern)]
    if as_json:
        print_json([describe_entry(entry) for entry in entries])
        return
    rows = [("model", "parameters", "input", "top-1 %", "archive MiB", "trained on")]
    for entry in entries:
        size, top1 = str(entry.image_size), f"{entry.published.top1:.1f}"
        count = f"{count_parameters(entry.arch) / 1e6:.1f} M"
        rows.append((entry.name, count, size, top1, f"{entry.source.size_mib:g}", entry.dataset))
    print(table(rows))


@app.command(
    epilog=examples(
        "rszoo info resnet-rs-152-i224", "rszoo info hf-hub:me/mine --json", "rszoo info my-model --tensors"
    )
)
def info(
    model: Annotated[
        str, typer.Argument(help="Model folder, registered name or hf-hub:OWNER/NAME; with --tensors a URL or file.")
    ],
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List the weights' tensors; of a URL only the header is fetched.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is known of a registered model, a model folder, or a model on the Hub."""
    from rszoo.cache.describe import describe, describe_tensors

    if tensors:
        _show_tensors(describe_tensors(model), as_json)
    else:
        _show_facts(describe(model), as_json)


def _show_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    print(table([(key, _text(value)) for key, value in _flatten(facts)]))


@app.command(epilog=examples("rszoo verify my-model", "rszoo verify my-model --ckpt resnet-rs-50-i160.tar.gz"))
def verify(
    folder: Annotated[str, typer.Argument(help="Model folder.")],
    ckpt: Annotated[str | None, typer.Option(help="The checkpoint it was converted from.")] = None,
    golden_image: Annotated[str | None, typer.Option(help="The photo that the published logits belong to.")] = None,
    as_json: Json = False,
) -> None:
    """Prove what can be proven here about a model folder, and say what could not be.

    The outcome is kept in FOLDER/verification.json.
    """
    from rszoo.cache.find import find_local
    from rszoo.verify import checks as parity

    opened = find_local(folder)
    load_frameworks("torch", "keras")
    checks = []
    for check in parity.verify(opened, source=ckpt, golden_image=golden_image):
        checks.append(check)
        if not as_json:
            print(printable(f"{check.status:8} {check.name}: {check.detail}"), flush=True)
    if as_json:
        print_json([check.to_dict() for check in checks])
    parity.save_verification(opened, checks)
    if failed := [check.name for check in checks if check.status == "failed"]:
        raise VerificationError(f"{folder} failed {len(failed)} of {len(checks)} checks: {', '.join(failed)}")


@app.command(epilog=examples("rszoo predict my-model photo.jpg", "rszoo predict my-model a.jpg b.png --top 3 --json"))
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    framework: Annotated[FrameworkChoice, typer.Option(help="What runs the model.")] = FrameworkChoice.torch,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Classify images with the published preprocessing."""
    from rszoo.cache.find import find_folder
    from rszoo.inference.classifier import Classifier

    for image in images:
        if not image.is_file():
            raise SourceNotFoundError(f"no image at {image}: give the path of a JPEG or PNG file")
    found = find_folder(model)
    load_frameworks(framework.value)
    classifier = Classifier(found, framework.value)
    results = []
    for image, logits in zip(images, classifier.logits(images), strict=True):
        predictions = classifier.top(logits, top)
        results.append({"image": str(image), "predictions": [dataclasses.asdict(guess) for guess in predictions]})
        if not as_json:
            print(image)
            for guess in predictions:
                print(f"  {100 * guess.probability:6.2f} %  {guess.index:4}  {guess.label}")
    if as_json:
        print_json(results)


@app.command(epilog=examples("rszoo demo", "rszoo demo --output demo-model"))
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the converted model.")] = Path("demo-model"),
) -> None:
    """Convert the embedded checkpoint, verify it, and classify digits that it never saw."""
    from rszoo.verify.demo import run_demo

    load_frameworks("torch", "keras")
    run_demo(output)


app.command(epilog=examples('rszoo prefetch "*-i256"', "rszoo prefetch resnet-rs-50-i160 --output for-the-cluster"))(
    prefetch
)
app.command(
    epilog=examples("rszoo push my-model me/resnet-rs-152-i256 --dry-run", "rszoo push my-model me/mine --private")
)(push)
app.command(epilog=examples('rszoo publish "resnet-rs-*" --to my-org', "rszoo publish resnet-rs-demo --to me --raw"))(
    publish
)
app.command(epilog=examples("rszoo pull hf-hub:me/mine", "rszoo pull me/mine@main --output my-model"))(pull)
app.command(epilog=examples(*TRAIN_EXAMPLES))(train)
app.command(
    "eval",
    epilog=examples(
        "rszoo eval resnet-rs-152-i256 --data /data/imagenet --output results",
        "rszoo eval runs/demo/model --data digits --record",
    ),
)(evaluate)
app.command("tfrecords", epilog=examples("rszoo tfrecords my-images my-tfrecords", "rszoo tfrecords a b --shards 16"))(
    make_tfrecords
)
app.command(epilog=examples(*BENCH_EXAMPLES))(bench)
app.add_typer(recipes_app, name="recipes")
app.add_typer(cache_app, name="cache")
app.add_typer(manifest_app, name="manifest")


def _show_tensors(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    rows = [("name", "dtype", "shape", "bytes")]
    for tensor in facts["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        rows.append((tensor["name"], tensor["dtype"], shape, f"{tensor['nbytes']:,}"))
    print(table([*rows, (f"{facts['count']} tensors", "", "", f"{facts['nbytes']:,}")]))


def _flatten(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in facts.items():
        nested = _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
        rows += [(name, item) for name, item in nested if item is not None]
    return rows


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) if not isinstance(item, tuple) else ": ".join(map(str, item)) for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    """Entry point of `rszoo`."""
    run(app)


if __name__ == "__main__":
    main()
