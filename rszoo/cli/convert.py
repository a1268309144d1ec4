"""`rszoo-convert`: a checkpoint to a model folder, or a model folder back to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rszoo.cli.console import EXIT_CODES, Version, WeakSource, WeightsChoice, new_app, print_json, run
from rszoo.errors import UsageError
from rszoo.refs import Folder
from rszoo.terminal import show

if TYPE_CHECKING:
    from converters.conversion import Conversion

app = new_app("Convert ResNet-RS checkpoints.")

_EXAMPLES = """
Examples:

  rszoo-convert --ckpt resnet-rs-101-i192.tar.gz --output my-model

  rszoo-convert --ckpt my-model --to tf1 --output my-checkpoint
"""


@app.command(epilog=_EXAMPLES + EXIT_CODES)
def convert(
    ckpt: Annotated[
        str,
        typer.Option(help="Archive, folder, prefix (dir/model.ckpt), .h5, .pth, URL, model name, or hf-hub:timm/NAME."),
    ],
    output: Annotated[Path | None, typer.Option(help="New folder for the result. Default: the model's name.")] = None,
    weights: Annotated[WeightsChoice, typer.Option(help="Averaged (published accuracy) or plain weights.")] = (
        WeightsChoice.ema
    ),
    model: Annotated[
        str | None, typer.Option(help="Which registered model the checkpoint is, if its name does not say.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Input size in pixels, for a network that is not registered.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Write a model folder (--ckpt) as a checkpoint of this format, such as tf1; an unknown one is "
            "answered with all. Default: safetensors, a model folder from a checkpoint.",
        ),
    ] = None,
    drop_background: Annotated[
        bool, typer.Option("--drop-background", help="Leave out the first of 1001 classes, which no image has.")
    ] = False,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep the archives in the cache's archives folder.")
    ] = False,
    allow_weak_source: WeakSource = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier model folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the account as JSON.")] = False,
    version: Version = False,
) -> None:
    """Convert a checkpoint to a model folder, accounting for every variable; or a model folder back to a checkpoint."""
    # Imported here: other commands need neither numpy nor the formats.
    from converters.conversion import convert_checkpoint
    from converters.convert import Identity
    from converters.formats import MODEL_FOLDER

    if to not in (None, MODEL_FOLDER):
        others = {
            "--model": model,
            "--image-size": image_size,
            "--keep-archive": keep_archive,
            "--overwrite": overwrite,
            "--drop-background": drop_background,
            "--allow-weak-source": allow_weak_source,
        }
        if given := [name for name, value in others.items() if value]:
            raise UsageError(f"--to {to} writes a model folder as it is; leave out {' and '.join(given)}")
        _write_back(ckpt, output, to, as_json)
        return

    done = convert_checkpoint(
        ckpt,
        output,
        weights=weights.value,
        identity=Identity(model, image_size),
        overwrite=overwrite,
        keep_archive=keep_archive,
        drop_background=drop_background,
        allow_weak_source=allow_weak_source,
    )
    print_json(done.to_dict()) if as_json else show(_summary(done))


def _write_back(ckpt: str, output: Path | None, target: str, as_json: bool) -> None:
    from converters.formats import get_target
    from converters.write_back import left_out, write_checkpoint
    from rszoo.cache.find import find_local

    chosen, _ = get_target(target)
    folder = find_local(ckpt)
    if output is None:
        raise UsageError(f"--to {target} needs --output FOLDER")
    written, without = write_checkpoint(folder, output, target), left_out(folder, target)
    if as_json:
        print_json({"prefix": str(written), "left_out": without})
        return
    missing = f"; it does not hold {', '.join(without)}" if without else ""
    show(f"wrote {written}, a {chosen.title}{missing}")


def _summary(done: Conversion) -> str:
    report, path = done.account, done.folder.path
    skipped = "\n".join(f"  skipped  {len(names):5}  {reason}" for reason, names in report["skipped"].items())
    notes = "".join(f"  note: {note}\n" for note in report["source"].get("notes", ()))
    return (
        f"{report['model']}: {report['architecture']}, {report['parameters']:,} parameters, "
        f"{report['weights']} weights\n"
        f"  mapped   {len(report['mapped']):5}  each tensor once, re-read and equal to the checkpoint bit by bit\n"
        f"{skipped}\n"
        f"{notes}"
        f"wrote {path}; check it with: rszoo verify {Folder(str(path))}"
    )


def main() -> None:
    """Entry point of `rszoo-convert`."""
    run(app)


if __name__ == "__main__":
    main()
