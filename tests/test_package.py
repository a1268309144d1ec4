"""The package as such: what importing it costs, and what it offers."""

from __future__ import annotations

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
        millions = f"{count_parameters(entry.arch) / 1e6:.1f} M"
        assert f"| {name} | {millions} | {entry.image_size} | {entry.published.top1:.1f} |" in readme


def test_every_room_has_its_place_in_the_order():
    """The linter says nothing of a folder that the contract does not name."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    ordered = {name for layer in layers for name in layer.split(" | ")}
    there = {f"rszoo.{path.stem}" for path in (ROOT / "rszoo").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert ordered - {"converters"} == there - {"rszoo.__init__", "rszoo.__pycache__"}
