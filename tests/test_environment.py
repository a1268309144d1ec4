"""What the machine has set or lacks: packages, proxies, certificates, variables of other programs, Keras's file."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rszoo
from rszoo.cli.console import _OneRetry
from rszoo.errors import ConfigError, MissingPackageError, NetworkError, UsageError
from rszoo.models import factory
from rszoo.models.keras_settings import chosen_backend
from rszoo.net.proxies import check_environment
from rszoo.redact import redact
from tests.commands import call

torch = pytest.importorskip("torch")
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx"
SECRETS = (TOKEN, "abc.def-ghi", "pass", "word@", "of-the-login", "OF-THE-LOGIN", "b2YtdGhl")
# Makes Python look as if packages were not installed.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {names!r} else find(name, package)
from rszoo.cli.main import main
sys.argv = ["rszoo", *sys.argv[1:]]
main()
"""


def run_without(names: tuple[str, ...], *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `rszoo` in a process that does not find some packages."""
    command = [sys.executable, "-c", HIDE.format(names=names), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_what_is_installed_is_the_default(tmp_path):
    words = ("eval", "resnet-rs-demo", "--data", "digits", "--limit", "20", "--batch-size", "20", "--json")
    done = run_without(("torch",), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["framework"] == "keras"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("eval", "resnet-rs-demo", "--data", "digits"), "neither PyTorch nor Keras is installed"),
        (("bench", "resnet-rs-demo"), "neither PyTorch nor Keras is installed"),
        (("train", "--recipe", "resnet-rs-demo", "--data", "digits", "--output", "x"), "neither PyTorch"),
    ],
    ids=["eval", "bench", "train"],
)
def test_without_any_framework_both_ways_out_are_named(tmp_path, words, hint):
    done = run_without(("torch", "keras", "tensorflow"), *words, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (6, 1), done.stderr
    assert hint in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_framework_that_is_missing_names_the_other(monkeypatch):
    monkeypatch.setattr(factory, "is_installed", lambda name: name == "keras")
    assert factory.default_framework() == "keras"
    monkeypatch.setattr(factory, "is_installed", lambda name: False)
    with pytest.raises(MissingPackageError, match=r"rszoo\[torch\].*rszoo\[keras,tensorflow\]"):
        factory.default_framework()


def test_a_library_that_ends_the_process_is_heard():
    code = (
        "import os; from rszoo.held_back import held_back_stderr\n"
        "with held_back_stderr('importing x'):\n os.write(2, b'OMP: Error #15: two copies'); os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -6
    assert done.stderr.startswith("OMP: Error #15: two copies")
    assert done.stderr.endswith("\nerror: the process ended while importing x; what was printed is above\n")
    silent = code.replace("os.write(2, b'OMP: Error #15: two copies'); os.abort()", "os.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", silent], capture_output=True, text=True)
    assert done.stderr == "error: the process ended while importing x; was it killed, or out of memory?\n"
    quiet = code.replace("; os.abort()", "").replace("OMP", "chatter")
    assert subprocess.run([sys.executable, "-c", quiet], capture_output=True, text=True).stderr == ""
    loud = code.replace("os.abort()", "raise ValueError")
    assert "OMP: Error #15" in subprocess.run([sys.executable, "-c", loud], capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    ("variables", "error", "hint"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8"}, UsageError, "unset RANK WORLD_SIZE"),
        ({"RANK": "9", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, UsageError, "left over"),
        ({"RANK": "x", "WORLD_SIZE": "8"}, UsageError, "RANK is 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, UsageError, "WORLD_SIZE is 'two'"),
        ({"LOCAL_RANK": "-1"}, UsageError, "LOCAL_RANK is '-1'"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"},
            UsageError,
            "MASTER_PORT is 99999",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "1"},
            NetworkError,
            "check MASTER_ADDR",
        ),
    ],
    ids=["alone", "rank", "no number", "no count", "local", "port", "host"],
)
def test_variables_of_another_launcher_are_told(monkeypatch, variables, error, hint):
    from rszoo.train.torch.world import join_world

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=hint):
        join_world()
    if error is NetworkError:
        # A host that is one, and does not answer.
        def refuse(*_: object) -> None:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            raise torch.distributed.DistNetworkError("The client socket has failed")

        monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(error, match=hint):
            join_world()
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("ALL_PROXY", "ftp://me:secret@proxy:1", "ALL_PROXY is 'ftp://proxy:1'"),
        ("https_proxy", "http://proxy:port", "https_proxy is"),
        ("HTTP_PROXY", "http://user:secret/a@proxy:1", "HTTP_PROXY is 'http://proxy:1'"),
        ("HTTP_PROXY", "http://proxy:99999", "http://proxy.example:3128"),
        ("HTTPS_PROXY", "://", "allowed: http, https"),
        ("REQUESTS_CA_BUNDLE", "/nonexistent/ca.pem", "REQUESTS_CA_BUNDLE is '/nonexistent/ca.pem'"),
        ("SSL_CERT_FILE", "/nonexistent/ca.pem", "no such file"),
    ],
)
def test_proxies_and_certificates_are_checked_first(monkeypatch, tmp_path, variable, value, hint):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    check_environment()
    with monkeypatch.context() as patched:
        patched.setenv(variable, value)
        with pytest.raises(UsageError, match=hint) as told:
            check_environment()
        assert "secret" not in str(told.value)
    for words in (("pull", "hf-hub:me/x", "--output", "m"), ("prefetch", "resnet-rs-50-i160")):
        done = call("rszoo", *words, cwd=tmp_path, RSZOO_CACHE=str(tmp_path / "cache"), **{variable: value})
        assert (done.returncode, "Traceback" in done.stderr, hint.split(" is")[0] in done.stderr) == (2, False, True)


def test_a_socks_proxy_needs_its_packages(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://localhost:1080")
    check_environment()
    monkeypatch.setattr("rszoo.net.proxies.is_installed", lambda name: name == "socks")
    with pytest.raises(MissingPackageError, match=r"ALL_PROXY is a SOCKS proxy.*rszoo\[socks\]"):
        check_environment()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"floatx": "float15"}', "has floatx 'float15'; let it be float16"),
        ('{"backend": "theano"}', "has backend 'theano'"),
        ('{"image_data_format": 1}', "has image_data_format 1"),
        ("[]", "is no JSON object"),
        ('{"epsilon": 1}', "has epsilon 1; let it be a number with a point"),
        ('{"nnx_enabled": "x"}', "let it be true or false"),
    ],
)
def test_keras_json_is_checked_before_keras_breaks_on_it(monkeypatch, tmp_path, text, hint):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert chosen_backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert chosen_backend() == "jax"
    (tmp_path / "keras.json").write_text(text)
    with pytest.raises(UsageError, match=hint):
        chosen_backend()
    # In an empty variable Keras sees the working directory.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", "")
    with pytest.raises(UsageError, match=hint):
        chosen_backend()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    # What Keras would wait for.
    (tmp_path / "keras.json").unlink()
    os.mkfifo(tmp_path / "keras.json")
    with pytest.raises(UsageError, match="pipe or device, not a regular file"):
        chosen_backend()
    (tmp_path / "keras.json").unlink()
    # What Keras passes over too.
    for other in ("{", ""):
        (tmp_path / "keras.json").write_text(other)
        assert chosen_backend() == "tensorflow"


def test_float32_is_that_whatever_keras_json_says(tmp_path):
    (tmp_path / "keras.json").write_text('{"floatx": "float16", "image_data_format": "channels_first"}')
    code = (
        "import numpy as np, rszoo\n"
        "model = rszoo.create('resnet-rs-demo', pretrained=True, framework='keras', dtype='float32')\n"
        "assert {v.dtype for v in model.weights} == {'float32'}, {v.dtype for v in model.weights}\n"
        "print(float(abs(model.predict_on_batch(np.ones((1, 32, 32, 3), 'float32'))).sum()))"
    )
    sums = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "KERAS_HOME": home, "KERAS_BACKEND": "torch"},
        )
        for home in (str(tmp_path), str(tmp_path / "none"))
    ]
    assert [done.returncode for done in sums] == [0, 0], sums[0].stderr
    assert float(sums[0].stdout) == pytest.approx(float(sums[1].stdout), rel=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        f"403 Forbidden: {TOKEN} is not allowed",
        "401: {'authorization': 'Bearer abc.def-ghi'}",
        "cannot open https://me:pass@host/x: refused",
        "the token of-the-login is wrong",
        "proxy http://user:pass@word@proxy:3128/ refused",
        "in a query: OF-THE-LOGIN; in a header: b2YtdGhlLWxvZ2lu",
    ],
)
def test_secrets_leave_every_text(monkeypatch, text):
    monkeypatch.setenv("HF_TOKEN", "of-the-login")
    for said in (redact(text), str(NetworkError(text))):
        assert "***" in said
        assert not any(
            secret in said for secret in (TOKEN, "abc.def-ghi", "pass", "word@", "of-the-login", "OF-THE", "b2Yt")
        )
    # The words around stay.
    assert redact(text)[:4] == text[:4]


def test_what_has_no_secret_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    text = "https://example.com/x@y is basic; see hf-hub:me/hf_model and a bearer of news"
    assert redact(text) == text
    assert redact("Basic knowledge; Bearer tokens are shown") == "Basic knowledge; Bearer tokens are shown"


def test_an_unreachable_hub_is_reported_once(tmp_path, caplog):
    done = call(
        "rszoo",
        *("pull", "hf-hub:me/x", "--output", str(tmp_path / "m")),
        RSZOO_CACHE=str(tmp_path / "cache"),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_ENDPOINT="http://127.0.0.1:9",
    )
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 2
    kept = _OneRetry()
    records = [
        logging.LogRecord("x", logging.WARNING, "", 0, text, (), None)
        for text in ("'X' thrown while requesting GET y", "Retrying in 1s [Retry 1/5].", "another warning")
    ]
    assert [kept.filter(record) for record in records] == [False, False, True]


def test_a_number_of_numpy_is_a_number_of_classes():
    import numpy as np

    assert rszoo.create("resnet-rs-demo", num_classes=np.int64(7)).fc.out_features == 7
    with pytest.raises(ConfigError, match="num_classes must be a whole number"):
        rszoo.create("resnet-rs-demo", num_classes=np.float32(7))


def test_a_closed_terminal_is_no_error(tmp_path):
    for closed in (">&-", "2>&-"):
        for words in ("list --json", "cache path resnet-rs-demo", "info resnet-rs-demo"):
            done = subprocess.run(
                ["sh", "-c", f"{sys.executable} -m rszoo {words} {closed}"],
                capture_output=True,
                text=True,
                cwd=tmp_path,
            )
            assert "Traceback" not in done.stderr + done.stdout, (closed, words)
