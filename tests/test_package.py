"""The package as such: what importing it costs, and what it offers."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rszoo
from rszoo.arch.walk import count_parameters

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "tf_keras"}


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has imported after running the code."""
    report = "import sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def test_import_loads_no_framework_and_no_client():
    loaded = modules_after("import rszoo")
    assert not loaded & (FRAMEWORKS | {"huggingface_hub", "requests", "numpy", "PIL"})


def test_listing_needs_no_numpy():
    assert "numpy" not in modules_after("import rszoo; rszoo.list_models(); rszoo.get_entry('resnetrs50')")


def test_conversion_imports_no_framework(tmp_path):
    code = f"from converters.convert import convert; convert('resnet-rs-demo', {str(tmp_path / 'm')!r})"
    assert not modules_after(code) & FRAMEWORKS
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_public_names_resolve_whatever_was_imported_before():
    submodules = {module.name for module in pkgutil.iter_modules(rszoo.__path__)}
    # A submodule of the same name would take the place of a public function as soon as it is imported.
    assert not submodules & set(rszoo.__all__)
    assert set(rszoo._MODULE_OF) | {"__version__"} == set(rszoo.__all__)
    for name, module in rszoo._MODULE_OF.items():
        assert getattr(rszoo, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match=r"it offers: .*create"):
        rszoo.no_such_name  # noqa: B018 - the access is the test


def test_type_checkers_see_the_same_names():
    source = (ROOT / "rszoo" / "__init__.py").read_text()
    block = source[source.index("if TYPE_CHECKING:") : source.index("def __getattr__")]
    for name, module in rszoo._MODULE_OF.items():
        (line,) = [line for line in block.splitlines() if line.strip().startswith(f"from {module} import ")]
        assert name in line.rpartition(" import ")[2].split(", ")


def test_the_docs_name_all_that_is_public():
    page = (ROOT / "docs" / "python.md").read_text()
    assert [name for name in rszoo.__all__ if f"`{name}`" not in page and f"rszoo.{name}(" not in page] == [
        "__version__"
    ]


def test_links_in_the_docs_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).is_file()] == []


def test_readme_lists_the_registered_models_with_their_facts():
    readme = (ROOT / "README.md").read_text()
    for name in rszoo.list_models("*-i*"):
        entry = rszoo.get_entry(name)
        tf1 = rszoo.get_entry(name.removesuffix(".garden"))
        millions = f"{count_parameters(tf1.arch) / 1e6:.1f} M"
        row = f"| {tf1.name} | {millions} | {tf1.image_size} | {tf1.published.top1:.1f} |"
        assert (row if entry is tf1 else f"{row} {entry.published.top1:.1f} |") in readme


def test_every_room_has_its_place_in_the_order():
    """The linter says nothing of a folder that the contract does not name."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    ordered = {name for layer in layers for name in layer.split(" | ")}
    there = {f"rszoo.{path.stem}" for path in (ROOT / "rszoo").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert ordered - {"converters"} == there - {"rszoo.__init__", "rszoo.__pycache__"}


def test_nothing_forks():
    # A fork of a process that has used PyTorch, TensorFlow or JAX hangs; see docs/python.md.
    forking = {"fork", "forkpty", "Process", "Pool", "ProcessPoolExecutor", "set_start_method"}
    for path in [*ROOT.glob("rszoo/**/*.py"), *ROOT.glob("converters/**/*.py")]:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        for call in calls:
            text, name = ast.unparse(call), getattr(call, "attr", getattr(call, "id", ""))
            # What a context of `spawn` starts.
            assert name not in forking or text == "context.Process", (path, text)
    timing = (ROOT / "rszoo" / "bench" / "timing.py").read_text()
    assert re.findall(r"get_context\((.*)\)", timing) == ['"spawn"']


@pytest.mark.slow
def test_workers_by_spawn_preprocess_beside_a_model_in_use(tmp_path):
    # As docs/python.md says.
    (tmp_path / "images.py").write_text(
        "import rszoo, torch\n"
        "class Images(torch.utils.data.Dataset):\n"
        "    def __init__(self, files, preprocessing): self.files, self.preprocessing = files, preprocessing\n"
        "    def __len__(self): return len(self.files)\n"
        "    def __getitem__(self, i):\n"
        "        return torch.from_numpy(rszoo.preprocess(self.files[i], self.preprocessing)[0]).permute(2, 0, 1)\n"
    )
    (tmp_path / "run.py").write_text(
        "import numpy as np, rszoo, torch\n"
        "from PIL import Image\n"
        "from images import Images\n"
        "if __name__ == '__main__':\n"
        "    files = [f'{i}.png' for i in range(8)]\n"
        "    for i, name in enumerate(files):\n"
        "        Image.fromarray(np.full((20, 20, 3), 30 * i, np.uint8)).save(name)\n"
        "    model = rszoo.create('resnet-rs-demo', pretrained=True)\n"
        "    entry = rszoo.get_entry('resnet-rs-demo')\n"
        "    images = Images(files, entry.preprocessing)\n"
        "    expected = model(torch.stack([images[i] for i in range(8)]))\n"
        "    for context in ('spawn', 'fork'):\n"
        "        loader = torch.utils.data.DataLoader(images, 4, num_workers=2, multiprocessing_context=context)\n"
        "        found = torch.cat([model(batch) for batch in loader])\n"
        "        print(float((found - expected).abs().max()))\n"
    )
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(float(line) < 1e-5 for line in done.stdout.split())
