"""The section of a model card with snippets of code, for the libraries that can load the files."""

from __future__ import annotations

from rszoo.folder.model_folder import KERAS_WEIGHTS, RAW_WEIGHTS
from rszoo.publish.card.facts import Findings

RAW_WARNING = (
    "In the published training no average is kept of the batch statistics (momentum 0): the moving means and variances "
    "of plain weights are those of one last batch, and of little use until they are estimated again."
)
_NOT_TIMM = (
    "timm has no such network: its `resnetrs` models have the widths, activation, padding and pools of the TF1 code. "
    "Given these weights, they would compute something else, or refuse them; `config.json` names none."
)


def usage(findings: Findings) -> str:
    """Return the snippets of code, for the libraries that can load the files."""
    name = f"hf-hub:{findings.facts.repo_id}"
    parts = ["## Use", _rszoo_usage(name, findings)]
    parts.append(_timm_usage(name) if findings.loads_in_timm else _NOT_TIMM)
    if KERAS_WEIGHTS in findings.facts.files:
        parts.append(_keras_usage(findings.facts.repo_id))
    if findings.raw is not None:
        parts.append(_raw_usage(name, findings))
    return "\n\n".join(parts)


def _rszoo_usage(name: str, findings: Findings) -> str:
    size = findings.facts.folder.config.preprocessing.image_size
    return f"""\
With rszoo (`pip install "rszoo[torch]"` or `"rszoo[keras,tensorflow]"`):

```python
import rszoo

model = rszoo.create("{name}", pretrained=True)  # torch.nn.Module, in evaluation mode
x = rszoo.preprocess("photo.jpg", model)  # float32, NHWC, 1 x {size} x {size} x 3, as published; PyTorch takes NCHW
keras_model = rszoo.create("{name}", pretrained=True, framework="keras")
backbone = rszoo.create("{name}", pretrained=True, features_only=True)  # a list of five maps
kernel = rszoo.load_weights("{name}")["conv1.0.weight"]  # reads no other tensor
```"""


def _timm_usage(name: str) -> str:
    return f"""\
With timm, where rszoo need not be installed:

```python
import timm

model = timm.create_model("{name}", pretrained=True).eval()
backbone = timm.create_model("{name}", pretrained=True, features_only=True)
```

timm's transform is not the published one; see Preprocessing."""


def _keras_usage(repo_id: str) -> str:
    return f"""\
With Keras 3, where rszoo need not be installed; it downloads all files of the repository:

```python
import keras

model = keras.saving.load_model("hf://{repo_id}")  # takes NHWC
```"""


def _raw_usage(name: str, findings: Findings) -> str:
    lines = ["import rszoo", "", f'model = rszoo.create("{name}/{RAW_WEIGHTS}", pretrained=True)']
    if findings.loads_in_timm:
        overlay = f'{{"hf_hub_filename": "{RAW_WEIGHTS}"}}'
        lines[1:1] = ["import timm"]
        lines.append(f'model = timm.create_model("{name}", pretrained=True, pretrained_cfg_overlay={overlay})')
    return "\n".join([f"The plain weights, `{RAW_WEIGHTS}`. {RAW_WARNING}", "", "```python", *lines, "```"])
