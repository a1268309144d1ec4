"""Optional packages that are missing are named with the extra that installs them; breakages are passed on."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from rszoo.errors import MissingPackageError
from rszoo.extras import OPTIONAL, check_installed, installed_versions, needs

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("package", OPTIONAL)
def test_a_missing_package_is_named_with_an_extra_that_has_it(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    title, extra = OPTIONAL[package]
    text = rf'^this needs {title}, which is not installed; run: pip install "rszoo\[{extra}\]" \(or not\)$'
    with pytest.raises(MissingPackageError, match=text), needs("this", package, hint="or not"):
        __import__(package)
    wanted = {"sklearn": "scikit-learn"}.get(package, package)
    assert any(one.startswith(wanted) for one in PROJECT["optional-dependencies"][extra])


def test_a_breakage_inside_a_package_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import rszoo_none_such")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="rszoo_none_such") as caught, needs("this", "torch"):
        __import__("torch")
    assert not isinstance(caught.value, MissingPackageError)


def test_a_package_is_looked_for_without_an_import(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    # Not emptied, of which Python would warn: none of them finds a package.
    monkeypatch.setattr(sys, "meta_path", [SimpleNamespace(find_spec=lambda *_: None)])
    monkeypatch.delitem(sys.modules, "cramjam", raising=False)
    with pytest.raises(MissingPackageError, match=r'reading needs cramjam.*"rszoo\[data\]"$'):
        check_installed("reading", "cramjam", extra="data")


def test_only_what_is_installed_has_a_version():
    assert list(installed_versions(("numpy", "rszoo-none-such", "rszoo"))) == ["numpy", "rszoo"]
