"""The scan on a GPU against the readable reference in float64, in values and gradients.

Where there is a GPU, the tests of our kernels run on it. Everywhere, they run on tiny shapes in Triton's interpreter, which has
to be chosen before triton is imported: `test_our_kernels_in_the_interpreter` runs this file again, in a process of its own.
"""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from hypotheses.backbones import scan_gpu
from hypotheses.backbones.scan import selective_scan_reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
# the compiled exp2 is an approximation, and its errors add up over the tokens that a state remembers
TOLERANCE = 1e-6 if DEVICE == "cpu" else 1e-5

kernels_run = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU: runs in the interpreter, below")

# B, L, K, E, N
TINY = [(2, 1, 1, 3, 1), (1, 10, 2, 5, 3), (1, 9, 1, 20, 16), (1, 6, 4, 1, 2), (2, 20, 1, 9, 5)]
LARGE = [
    (2, 1, 1, 96, 1),
    (3, 197, 2, 100, 3),
    (2, 196, 2, 384, 16),
    (1, 64, 4, 33, 2),
    (1, 1000, 1, 48, 20),
    (1, 50, 1, 40, 256),
]
SHAPES = LARGE if DEVICE == "cuda" else TINY
STEPS = {"usual": 0.05, "large": 20.0, "tiny": 1e-12}


@pytest.fixture(autouse=True)
def small_programs(monkeypatch):
    """In the interpreter, so that tiny shapes are several blocks, groups and chunks."""
    if INTERPRETED:
        for name, value in {"BLOCK": 8, "STATES": 4, "CHUNK": 4}.items():
            monkeypatch.setattr(scan_gpu, name, value)


def inputs(shape, step: float = 0.05, biased: bool = False, ordered: bool = False) -> list[Tensor | None]:
    """x, dt, A, B, C, D, dt_bias, orders in float32; what may have strides has them. Steps are at most `step`, nearly."""
    images, L, K, E, N = shape
    g = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    dt, bias = step * torch.rand(K, images, L, E, generator=g), None
    if biased:  # multiples of 1/8, so that the sum of both is exact
        bias = torch.full((K, E), step).expm1().log().mul(8).round() / 8 if step < 1 else torch.full((K, E), step - 2)
        dt = normal(K, images, L, E).clamp(-2, 2).mul(8).round() / 8
    A = -torch.arange(1.0, N + 1) * (1 + 0.1 * normal(K, E, N)).abs()
    both = normal(images, L, K, 2 * N + 3)
    orders = None
    if ordered:  # the first direction backwards, the others in any order
        orders = torch.stack([torch.randperm(L, generator=g) if k else torch.arange(L).flip(0) for k in range(K)]).int()
    x = normal(images, L, E + 1)[..., 1:]
    return [x, dt.permute(1, 2, 0, 3), A, both[..., 3 : 3 + N], both[..., 3 + N :], normal(K, E), bias, orders]


def results(
    scan, tensors: list[Tensor | None], *memory: bool, dtype=torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """The value, and the gradients of everything that has one."""
    orders = tensors[-1]
    if dtype == torch.float32:  # as they are, with their strides
        tensors = [None if v is None else v.to(device).detach().requires_grad_() for v in tensors[:-1]]
    else:
        tensors = [None if v is None else v.to(dtype).requires_grad_() for v in tensors[:-1]]
    y = scan(*tensors, None if orders is None else orders.to(device), *memory)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y)
    return [v.detach().cpu() for v in (y, *torch.autograd.grad(y, [v for v in tensors if v is not None], weight))]


def compare(tensors: list[Tensor | None], memory: bool) -> None:
    exact = results(selective_scan_reference, tensors, memory, dtype=torch.float64)
    for ours, true in zip(results(scan_gpu.triton_scan, tensors, memory, device=DEVICE), exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours.double() - true).norm() <= TOLERANCE * true.norm()  # false also where ours has a NaN


@kernels_run
@pytest.mark.parametrize("memory", [True, False], ids=["memory", "sham"])
@pytest.mark.parametrize("ordered", [False, True], ids=["straight", "ordered"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_our_kernels_equal_the_reference(shape, ordered, memory):
    compare(inputs(shape, biased=ordered, ordered=ordered), memory)


@kernels_run
@pytest.mark.parametrize("memory", [True, False], ids=["memory", "sham"])
@pytest.mark.parametrize("biased", [False, True], ids=["steps", "softplus"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_steps_of_any_size(step, biased, memory):
    compare(inputs(SHAPES[1], step, biased), memory)


@kernels_run
@pytest.mark.parametrize("value", [-1e4, -100.0, 100.0, 1e4])
def test_softplus_of_anything(value):
    tensors = inputs((1, 3, 1, 2, 2), biased=True)
    tensors[6] = torch.full((1, 2), value)
    exact = results(selective_scan_reference, tensors, dtype=torch.float64)
    for ours, true in zip(results(scan_gpu.triton_scan, tensors, device=DEVICE), exact, strict=True):
        # what float32 can hold; a GPU's exp2 gives zero for what is below 2^-126, times states and steps of up to 1e4
        torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-37 if DEVICE == "cpu" else 1e-32)


@kernels_run
def test_the_same_input_gives_the_same_bits():
    tensors = inputs(SHAPES[1], biased=True, ordered=True)
    once, again = (results(scan_gpu.triton_scan, tensors, device=DEVICE) for _ in range(2))
    assert all(map(torch.equal, once, again))
    trained = once[0]
    with torch.no_grad():
        once, again = (
            scan_gpu.triton_scan(*(None if v is None else v.to(DEVICE) for v in tensors)).cpu() for _ in range(2)
        )
    assert torch.equal(once, again)
    # a compiler may round another kernel otherwise, and the one that keeps no states is another
    torch.testing.assert_close(once, trained, rtol=0, atol=0 if DEVICE == "cpu" else TOLERANCE * trained.abs().max())


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="is what runs")
def test_our_kernels_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    tests = "kernels_equal or steps_of_any or softplus_of or same_bits"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", tests, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b37 passed", done.stdout) and "skipped" not in done.stdout, done.stdout


# ---- compiling, which needs no GPU -------------------------------------------------------------------------------------


def compiled(kernel, architecture: int, absent: tuple[str, ...], **options: int):
    """`kernel` for this kind of GPU, as sizes and strides that are multiples of 16 make it, `absent` arguments being None."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {"MEMORY": True, "BLOCK": scan_gpu.BLOCK, "STATES": scan_gpu.STATES, "CHUNK": scan_gpu.CHUNK, **options}
    options |= dict.fromkeys(absent)
    sizes = kernel.arg_names.index("images")
    signature, constants, multiples = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in options:
            signature[name], constants[i,] = "constexpr", options[name]
        else:
            signature[name] = "i32" if i >= sizes else "*i32" if name == "orders" else "*fp32"
            multiples[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, multiples)
    return compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": scan_gpu.WARPS})


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize(
    ("architecture", "absent", "options"),
    [
        (90, (), {}),
        pytest.param(75, (), {}, marks=pytest.mark.slow),
        pytest.param(80, (), {}, marks=pytest.mark.slow),
        pytest.param(100, (), {}, marks=pytest.mark.slow),
        pytest.param(90, ("dt_bias", "orders"), {}, marks=pytest.mark.slow),
        pytest.param(90, (), {"MEMORY": False}, marks=pytest.mark.slow),
        pytest.param(90, (), {"BLOCK": 1, "STATES": 1}, marks=pytest.mark.slow),
    ],
)
def test_our_kernels_compile_and_fit_into_registers(architecture, absent, options, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, unspilled in ((scan_gpu.forward_kernel, 0), (scan_gpu.backward_kernel, 256)):
        code = compiled(kernel, architecture, absent, **options)
        file = tmp_path / "kernel.cubin"
        file.write_bytes(code.asm["cubin"])
        tool = Path(sys.modules["triton"].__file__ or "").parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
        registers, stack = (int(re.findall(rf"{word}:(\d+)", said)[0]) for word in ("REG", "STACK"))
        print(f"{kernel.__name__} for sm_{architecture}: {registers} registers, {stack} bytes of stack")
        assert registers <= 255 and stack <= unspilled  # bytes of registers that did not fit


# ---- mamba_ssm ---------------------------------------------------------------------------------------------------------


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """What mamba_ssm's function of this name computes, after its description: u, delta (B, D, L), A (D, N), B, C (B, G, N, L),
    each of G groups for D/G neighbouring channels, D, delta_bias (D)."""
    assert z is None and not return_last_state and D is not None
    assert (
        u.shape == delta.shape
        and A.shape[0] == len(D) == u.shape[1]
        and B.shape == C.shape
        and B.shape[3] == u.shape[2]
    )
    assert all(v.is_contiguous() for v in (A, B, C, D))  # what its extension checks of strides, and more
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = softplus(delta)
    B, C = (v.repeat_interleave(u.shape[1] // v.shape[1], dim=1) for v in (B, C))  # (B, D, N, L)
    h, y = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[..., t]
        y.append((h * C[..., t]).sum(-1) + D * u[:, :, t])
    return torch.stack(y, dim=2)


@pytest.fixture
def mamba_ssm(monkeypatch):
    """A stand-in for the package; returns its module of the scan."""
    scan_gpu.mamba_ssm_installed.cache_clear()
    name = "mamba_ssm.ops.selective_scan_interface"
    modules = {n: types.ModuleType(n) for n in ("mamba_ssm", "mamba_ssm.ops", name)}
    for n, module in modules.items():
        monkeypatch.setitem(sys.modules, n, module)
    vars(modules[name]).update(selective_scan_fn=selective_scan_fn, selective_scan_cuda=object())
    yield modules[name]
    scan_gpu.mamba_ssm_installed.cache_clear()


@pytest.mark.parametrize("biased", [False, True], ids=["steps", "softplus"])
@pytest.mark.parametrize("ordered", [False, True], ids=["straight", "ordered"])
@pytest.mark.parametrize("shape", TINY, ids=str)
def test_our_layouts_become_those_of_mamba_ssm_and_back(shape, ordered, biased, mamba_ssm):
    """Of our side of it only: the stand-in above is no check of their kernels."""
    tensors = inputs(shape, biased=biased, ordered=ordered)
    exact = results(selective_scan_reference, tensors, dtype=torch.float64)
    for ours, true in zip(results(scan_gpu.mamba_ssm_scan, tensors, dtype=torch.float64), exact, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-12)


def test_mamba_ssm_counts_as_installed_only_with_its_extension(mamba_ssm):
    assert scan_gpu.mamba_ssm_installed()
    scan_gpu.mamba_ssm_installed.cache_clear()
    mamba_ssm.selective_scan_cuda = None  # built without it, as newer versions are
    assert not scan_gpu.mamba_ssm_installed()


@pytest.mark.parametrize(
    "failure", ["raise ImportError('undefined symbol: _ZN3c10')", "raise OSError", "import nothing_of_this_name"]
)
def test_a_mamba_ssm_that_cannot_be_imported_is_passed_over_in_silence(failure, tmp_path, monkeypatch, capfd):
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm/__init__.py").write_text(f"import warnings\nwarnings.warn('careful')\n{failure}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mamba_ssm", raising=False)
    scan_gpu.mamba_ssm_installed.cache_clear()
    assert not scan_gpu.mamba_ssm_installed()
    assert capfd.readouterr() == ("", "")
    scan_gpu.mamba_ssm_installed.cache_clear()


@pytest.mark.skipif(DEVICE != "cuda" or not scan_gpu.mamba_ssm_installed(), reason="no GPU, or no mamba_ssm")
@pytest.mark.parametrize("ordered", [False, True], ids=["straight", "ordered"])
def test_mamba_ssm_itself_equals_the_reference(ordered):
    tensors = inputs(LARGE[2], biased=True, ordered=ordered)
    exact = results(selective_scan_reference, tensors, dtype=torch.float64)
    for theirs, true in zip(results(scan_gpu.mamba_ssm_scan, tensors, device="cuda"), exact, strict=True):
        assert (theirs.double() - true).norm() <= 1e-4 * true.norm()


def test_the_module_can_be_imported_without_triton():
    blocked = "import sys, importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: n != 'triton' and f(n, *a) or None\n"
    code = blocked + "from hypotheses.backbones import scan_gpu; assert not scan_gpu.mamba_ssm_installed()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
