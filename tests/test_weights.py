"""`rszoo.load_weights`: three frameworks' views of a file, zero-copy, slices, foreign dtypes, URLs by ranges."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import rszoo
from rszoo.arch.names import is_counter
from rszoo.errors import MissingPackageError, NetworkError, UsageError, WeightsError
from rszoo.weights import values as tensor_values
from rszoo.weights.mapping import Weights
from tests.commands import call
from tests.servers import FaultServer

PATH = "/models/tiny/model.safetensors"
CONV, KERAS_CONV = "layer2.0.conv2.weight", "stage2_block0_conv2/kernel"
INDICES = [
    *(np.s_[3], np.s_[-1], np.s_[1:3], np.s_[3:0:-2], np.s_[2:2], np.s_[...], ()),
    *(np.s_[..., 1], np.s_[1, ..., ::-1], np.s_[:, 2, :, 1:2], np.s_[0:3, 0, 1:, -1]),
    *(np.s_[None], np.s_[[0, 2]], np.s_[:, [1, 0]], np.s_[..., 7:4:-1]),
]


@pytest.fixture
def server(tiny_folder):
    """A server that has the small network's weights."""
    with FaultServer(objects={PATH: tiny_folder.weights_path.read_bytes()}) as running:
        yield running


def header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def write_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_three_frameworks_see_the_same_values(tiny_folder):
    expected = safetensors.numpy.load_file(tiny_folder.weights_path)
    arrays, tensors, keras_arrays = (rszoo.load_weights(tiny_folder.path, name) for name in ("numpy", "torch", "keras"))
    assert set(arrays) == set(tensors) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
        assert torch.equal(tensors[name], torch.from_numpy(values))
    assert {name for name, values in expected.items() if values.dtype == np.int64} == set(filter(is_counter, expected))
    variables = {variable.path: variable for variable in rszoo.create(tiny_folder.path, framework="keras").weights}
    assert set(keras_arrays) == set(variables)
    for name, variable in variables.items():
        assert keras_arrays.shape(name) == tuple(variable.shape)
        np.testing.assert_array_equal(keras_arrays[name], np.asarray(variable))
        assert keras_arrays[name].flags.c_contiguous
    assert (arrays.shape(CONV), arrays.dtype(CONV)) == (expected[CONV].shape, "F32")
    assert arrays.nbytes == sum(values.nbytes for values in expected.values())
    counts = [values.nbytes for name, values in expected.items() if is_counter(name)]
    assert keras_arrays.nbytes == arrays.nbytes - sum(counts)
    assert len(counts) > 10


def resident(path: Path) -> int:
    """Bytes of a file that this process has in memory through maps of it."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages in memory")
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_mapped_tensors_are_views_of_which_only_touched_pages_are_read(tmp_path, framework):
    path, size = tmp_path / "big.safetensors", 4 << 20
    values = np.random.default_rng(0).standard_normal((8, size // 4), np.float32)
    safetensors.numpy.save_file({f"t{number}": row for number, row in enumerate(values)}, path)
    before = path.read_bytes()
    weights = rszoo.load_weights(path, framework, mmap=True)
    opened, first, again = resident(path), weights["t3"], weights["t3"]
    assert resident(path) == opened < 1 << 20
    assert first.sum() == pytest.approx(values[3].sum(), rel=1e-3)
    # A kernel may map a few pages around a touched one.
    assert size <= resident(path) - opened < 1.5 * size
    first[:] = 7
    assert (again == 7).all()
    assert path.read_bytes() == before
    weights.__exit__(None)
    assert (first == 7).all()


def test_copies_are_read_and_the_file_is_never_mapped(tiny_folder, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(tiny_folder.weights_path.read_bytes())
    expected = safetensors.numpy.load_file(path)
    with Weights(path) as weights:
        assert all(np.array_equal(weights[name], values) for name, values in expected.items())
        assert not np.shares_memory(weights[CONV], weights[CONV])
        assert str(path) not in Path("/proc/self/maps").read_text() or sys.platform != "linux"
        os.truncate(path, header_bytes(path) + 4)
        with pytest.raises(WeightsError, match="changed while it was opened"):
            weights["fc.weight"]


@pytest.mark.parametrize("odd", [False, True])
def test_foreign_dtypes_scalars_and_misaligned_files(tmp_path, odd):
    stored = {
        **{f"f{dtype}": torch.randn(3, 5).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        **{"i": torch.arange(6).reshape(2, 3), "b": torch.tensor([True, False]), "scalar": torch.tensor(2.5)},
        **{"empty": torch.zeros(0, 3), "e4m3": torch.randn(4).to(torch.float8_e4m3fn)},
    }
    path = tmp_path / "foreign.safetensors"
    data = safetensors.torch.save(stored)
    if odd:
        length = int.from_bytes(data[:8], "little")
        data = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :]
    path.write_bytes(data)
    tensors, arrays = rszoo.load_weights(path, "torch"), rszoo.load_weights(path)
    for name, expected in stored.items():
        assert (tensors[name].dtype, tensors[name].shape) == (expected.dtype, expected.shape)
        assert torch.equal(tensors[name].double(), expected.double())
        if name == "e4m3":
            with pytest.raises(WeightsError, match=r'numpy has no F8_E4M3.*framework="torch"'):
                arrays[name]
            continue
        assert arrays[name].flags.aligned
        wanted = expected.float() if expected.dtype == torch.bfloat16 else expected
        np.testing.assert_array_equal(arrays[name], wanted.numpy(), strict=True)
    assert arrays.get_slice("scalar")[...] == 2.5
    with pytest.raises(IndexError):
        arrays.get_slice("i")[2]


def test_values_of_the_other_byte_order_are_swapped(monkeypatch):
    """A big-endian machine sees little-endian files as this one would see big-endian ones."""
    monkeypatch.setitem(tensor_values._NUMPY_DTYPES, "F32", ">f4")
    data = np.frombuffer(np.array([1.5, -2], ">f4").tobytes(), np.uint8)
    for convert in (tensor_values.to_numpy, tensor_values.to_torch):
        np.testing.assert_array_equal(convert(data, "F32", (2,)), np.array([1.5, -2], np.float32))


@pytest.mark.parametrize("where", ["file", "url"])
@pytest.mark.parametrize("framework", ["numpy", "torch", "keras"])
def test_slices_are_those_of_the_whole(tiny_folder, server, framework, where):
    source = tiny_folder.path if where == "file" else server.endpoint + PATH
    name = KERAS_CONV if framework == "keras" else CONV
    weights = rszoo.load_weights(source, framework)
    whole = weights[name]
    assert weights.get_slice(name).get_shape() == list(whole.shape)
    for index in INDICES:
        try:
            expected = whole[index]
        except (IndexError, ValueError) as error:
            # PyTorch has no negative steps; and the first axis of a kernel in Keras has three rows.
            with pytest.raises(type(error)):
                weights.get_slice(name)[index]
            continue
        np.testing.assert_array_equal(weights.get_slice(name)[index], expected, strict=framework != "torch")


def test_url_costs_its_header_and_what_is_asked_for(tiny_folder, server):
    expected = safetensors.numpy.load_file(tiny_folder.weights_path)
    weights = rszoo.load_weights(server.endpoint + "/models/tiny")
    header = header_bytes(tiny_folder.weights_path)
    weights.shape(CONV), weights.nbytes, weights.metadata["weights"]
    assert [request.range for request in server.requests] == [(0, 7), (8, header - 1)]
    assert server.sent_bytes == header

    np.testing.assert_array_equal(weights[CONV], expected[CONV])
    assert server.sent_bytes - header == expected[CONV].nbytes
    rows = weights.get_slice(CONV)[1:3, 0]
    np.testing.assert_array_equal(rows, expected[CONV][1:3, 0])
    assert server.requests[-1].sent == expected[CONV][:2].nbytes
    np.testing.assert_array_equal(weights.get_slice(CONV)[-1], expected[CONV][-1])
    assert server.requests[-1].sent == expected[CONV][:1].nbytes

    names = list(weights)
    neighbours, alone = names[10:14], names[30]
    count = len(server.requests)
    loaded = weights.load([alone, *reversed(neighbours)])
    assert list(loaded) == [alone, *reversed(neighbours)]
    assert all(np.array_equal(values, expected[name]) for name, values in loaded.items())
    sent = [request.sent for request in server.requests[count:]]
    assert sent == [sum(expected[name].nbytes for name in neighbours), expected[alone].nbytes]


def test_keras_and_torch_from_a_url(tiny_folder, server):
    local = rszoo.load_weights(tiny_folder.path, "keras")
    remote = rszoo.load_weights(server.endpoint + PATH + "?token=1", "keras")
    loaded = remote.load(remote)
    assert list(loaded) == list(local)
    assert all(np.array_equal(loaded[name], local[name]) for name in local)
    assert server.requests[-1].path.endswith("?token=1")
    # One request for all the values.
    assert len(server.requests) == 3
    tensor = rszoo.load_weights(server.endpoint + PATH, "torch")["fc.bias"]
    assert torch.equal(tensor.add_(0), rszoo.load_weights(tiny_folder.path, "torch")["fc.bias"])


def test_object_that_changes_between_requests_is_an_error(server):
    weights = rszoo.load_weights(server.endpoint + PATH)
    server.put(PATH, bytes(len(server.objects[PATH])))
    with pytest.raises(NetworkError, match="changed while it was read"):
        weights[CONV]


def test_server_without_ranges_is_an_error(server):
    server.ranges = False
    with pytest.raises(NetworkError, match="no byte ranges"):
        rszoo.load_weights(server.endpoint + PATH)
    assert len(server.requests) == 1


def entry(start: int, stop: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HOSTILE = {
    "no file": (b"", b"", 0),
    "length beyond the file": (b"{}", b"", 1000),
    "length of exabytes": (b"{}", b"", 1 << 62),
    "not JSON": (b"<html></html>", b"", None),
    "deep JSON": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None),
    "gap": ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), None),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None),
    "past the end": ({"a": entry(0, 8)}, bytes(4), None),
    "more than the header says": ({"a": entry(0, 8)}, bytes(12), None),
    "other size than the shape": ({"a": entry(0, 12)}, bytes(12), None),
    "product overflows": ({"a": entry(0, 8, (1 << 33, 1 << 33, 2))}, bytes(8), None),
    "unknown dtype": ({"a": entry(0, 8, (2,), "F33")}, bytes(8), None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_here_and_behind_a_url(tmp_path, case):
    path = write_file(tmp_path / "model.safetensors", *HOSTILE[case])
    with pytest.raises(WeightsError, match="not a safetensors file"):
        rszoo.load_weights(path)
    with FaultServer(objects={PATH: path.read_bytes()}) as server:
        with pytest.raises(WeightsError, match="not a safetensors file"):
            rszoo.load_weights(server.endpoint + PATH)
        assert server.sent_bytes <= header_bytes(path)


def test_header_over_the_limit_is_not_fetched(monkeypatch, tiny_folder, server):
    monkeypatch.setattr("rszoo.weights.remote_file.MAX_HEADER_BYTES", 100)
    with pytest.raises(WeightsError, match="its header has"):
        rszoo.load_weights(server.endpoint + PATH)
    assert server.sent_bytes == 8


@pytest.mark.parametrize("names", [{"blocks.0.weight": (2,)}, {CONV: (2,)}, {"layer1.1000000.conv1.weight": (1,) * 4}])
def test_keras_names_need_a_resnet_rs(tmp_path, names):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({name: np.zeros(shape, np.float32) for name, shape in names.items()}, path)
    assert list(rszoo.load_weights(path)) == list(names)
    with pytest.raises(rszoo.RszooError, match=r"not a ResNet-RS|needs 4 axes|blocks"):
        rszoo.load_weights(path, "keras")


def test_wrong_frameworks_are_refused(tiny_folder):
    with pytest.raises(UsageError, match="numpy, torch or keras, received 'tensorflow'"):
        rszoo.load_weights(tiny_folder.path, "tensorflow")
    with pytest.raises(KeyError, match="nothing"):
        rszoo.load_weights(tiny_folder.path).load(["fc.bias", "nothing"])
    code = (
        "import sys; sys.modules['torch'] = None; import rszoo\n"
        f"rszoo.load_weights({str(tiny_folder.path)!r})['fc.bias']\n"
        f"try: rszoo.load_weights({str(tiny_folder.path)!r}, 'torch')\n"
        "except rszoo.RszooError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(MissingPackageError.__name__)
    assert 'pip install "rszoo[torch]"' in done.stdout


def test_info_lists_tensors_of_a_url_from_its_header(tiny_folder, server):
    listed = json.loads(call("rszoo", "info", "--tensors", server.endpoint + PATH, "--json").stdout)
    assert server.sent_bytes == header_bytes(tiny_folder.weights_path)
    expected = safetensors.numpy.load_file(tiny_folder.weights_path)
    found = {row["name"]: (row["dtype"], tuple(row["shape"]), row["nbytes"]) for row in listed["tensors"]}
    codes = {np.dtype("float32"): "F32", np.dtype("int64"): "I64"}
    assert found == {name: (codes[values.dtype], values.shape, values.nbytes) for name, values in expected.items()}
    assert (listed["count"], listed["nbytes"]) == (len(expected), sum(values.nbytes for values in expected.values()))
    local = json.loads(call("rszoo", "info", "--tensors", str(tiny_folder.path), "--json").stdout)
    assert local["tensors"] == listed["tensors"]


def test_info_lists_tensors_of_cached_models_and_fetches_none():
    missing = call("rszoo", "info", "--tensors", "resnet-rs-50-i160")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert "rszoo prefetch resnet-rs-50-i160" in missing.stderr
    rszoo.load_weights("resnet-rs-demo")
    lines = call("rszoo", "info", "--tensors", "resnet-rs-demo").stdout.splitlines()
    # With 32 of PyTorch's counts of batches.
    assert len(lines) == 194 + 32 + 2
    assert "conv1.0.weight F32 4 x 3 x 3 x 3 432" in [" ".join(line.split()) for line in lines]
    url = call("rszoo", "info", "https://example.com/model")
    assert (url.returncode, "--tensors https://example.com/model" in url.stderr) == (2, True)


def test_one_tensor_is_found_in_the_header_as_the_whole_header_has_it(tmp_path):
    names = ["a", 'b"a', "c\\", "d{}", "é", "", '"', "a.b", "b"]
    tensors = {name: np.full(position + 1, position, np.float32) for position, name in enumerate(names)}
    safetensors.numpy.save_file(
        tensors, tmp_path / "f.safetensors", metadata={"b": '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'}
    )
    for name, expected in tensors.items():
        np.testing.assert_array_equal(rszoo.load_weights(tmp_path / "f.safetensors")[name], expected)
    for name in ("__metadata__", "dtype", "shape", "x", '"b', 'b":{"dtype'):
        with pytest.raises(KeyError):
            rszoo.load_weights(tmp_path / "f.safetensors")[name]


@pytest.mark.parametrize("framework", ["numpy", "torch", "keras"])
def test_a_slice_is_contiguous_and_a_whole_one_is_checked(tiny_folder, tmp_path, framework):
    name = KERAS_CONV if framework == "keras" else CONV
    for index in (np.s_[:, 1:3], np.s_[:, :, 1:2], np.s_[1:2], np.s_[..., 0]):
        part = rszoo.load_weights(tiny_folder.path, framework).get_slice(name)[index]
        assert part.is_contiguous() if framework == "torch" else part.flags.c_contiguous
    path = tmp_path / "model.safetensors"
    data = bytearray(tiny_folder.weights_path.read_bytes())
    start, _ = Weights(tiny_folder.weights_path)._header.span(CONV)
    data[start] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="does not have the checksum"):
        rszoo.load_weights(path, framework).get_slice(name)[:]
