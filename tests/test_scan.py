"""Every way to compute the selective scan, against the readable reference in float64: values and gradients."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from hypotheses.backbones import kernels, scan
from hypotheses.backbones.scan import FUNCTIONS, selective_scan, selective_scan_reference
from hypotheses.config import ROOT
from hypotheses.errors import UserError

# B, L, K, E, N: one token; lengths around the kernel's chunk of 32; channels around its blocks of 8 and 16; odd N
SHAPES = [
    (2, 1, 1, 3, 1),
    (1, 32, 1, 16, 16),
    (2, 37, 2, 5, 3),
    (1, 70, 1, 20, 16),
    (3, 64, 2, 48, 8),
    (20, 5, 4, 1, 2),
]
STEPS = {"usual": 0.05, "large": 20.0, "tiny": 1e-12}
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")
WAYS = {"chunked": torch.float64, "chunked in float32": torch.float32, "cpp": torch.float32}


def inputs(shape: tuple[int, ...], step: float = 0.05, bias: bool = False, permuted: bool = False) -> dict[str, Tensor]:
    """Float64 tensors that float32 holds exactly. A large step makes exp(-A cumsum(dt)) overflow and exp(dt A) vanish."""
    B, L, K, E, N = shape
    g = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    made = {
        "x": normal(B, L, E),
        "dt": normal(B, L, K, E) if bias else step * torch.nn.functional.softplus(normal(B, L, K, E)),
        "A": -torch.arange(1.0, N + 1) * (1 + 0.1 * normal(K, E, N)).abs(),
        "B": normal(B, L, K, N),
        "C": normal(B, L, K, N),
        "D": normal(K, E),
    }
    if bias:
        made["dt_bias"] = torch.log(torch.tensor(step)).clamp(-6, 6) + normal(K, E)
    if permuted:
        made["orders"] = torch.stack([torch.randperm(L, generator=g) for _ in range(K)]).int()
    return {k: v if k == "orders" else v.double() for k, v in made.items()}


def results(
    function, tensors: dict[str, Tensor], memory: bool = True, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """y, and the gradient of every tensor."""
    given = {k: v if k == "orders" else v.to(dtype).requires_grad_() for k, v in tensors.items()}
    y = function(*(given.get(k) for k in NAMES), given.get("orders"), memory)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, [given[k] for k in NAMES if k in given], weight)]


def need(way: str) -> None:
    if way == "cpp" and kernels.library("scan") is None:
        pytest.skip("no compiler here")


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "sham"])
@pytest.mark.parametrize("permuted", [False, True], ids=["in order", "permuted"])
@pytest.mark.parametrize("bias", [False, True], ids=["dt", "softplus"])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_equals_the_reference(shape, step, bias, permuted, memory):
    tensors = inputs(shape, step, bias, permuted)
    true = results(selective_scan_reference, tensors, memory)
    for way, dtype in WAYS.items():
        need(way)
        found = results(FUNCTIONS[way.split()[0]], tensors, memory, dtype)
        for name, a, b in zip(("y", *NAMES), found, true, strict=False):
            assert a.dtype == dtype and a.isfinite().all()
            error = (a.double() - b).norm() / (b.norm() + 1e-30)
            # the rounding of dt + dt_bias in float32 is a relative error of exp(dt + dt_bias), whoever computes it
            least = 1e-12 if dtype == torch.float64 else 3e-6 if bias else 1e-6
            assert error <= least, (way, name, error)


@pytest.mark.parametrize("chunk_bytes", [1, 2**21])
def test_the_chunks_of_the_plain_scan_do_not_matter(chunk_bytes, monkeypatch):
    tensors = inputs((2, 37, 2, 5, 3))
    true = results(selective_scan_reference, tensors)
    monkeypatch.setattr(scan, "CHUNK_BYTES", chunk_bytes)  # 1: the smallest chunk, so that L is several of them
    for a, b in zip(results(FUNCTIONS["chunked"], tensors), true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", ["chunked", "cpp"])
def test_a_long_sequence_stays_exact(way):
    need(way)
    tensors = inputs((1, 2000, 1, 16, 4))
    true = results(selective_scan_reference, tensors)
    for a, b in zip(results(FUNCTIONS[way], tensors, dtype=torch.float32), true, strict=True):
        assert (a.double() - b).norm() <= 1e-6 * b.norm()


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "sham"])
@pytest.mark.parametrize("way", ["reference", "chunked"])
def test_gradcheck(way, memory):
    tensors = inputs((2, 9, 2, 3, 2), bias=True, permuted=True)
    given = [tensors[k].requires_grad_() for k in NAMES]
    assert torch.autograd.gradcheck(lambda *v: FUNCTIONS[way](*v, tensors["orders"], memory), given)


@pytest.mark.parametrize("way", ["chunked", "cpp"])
def test_strides_do_not_matter(way):
    """The layer hands over views: dt permuted, B and C cut out of a larger product, x of a convolution's layout."""
    need(way)
    tensors = {k: v.float() for k, v in inputs((2, 37, 2, 24, 3)).items()}
    views = dict(tensors)
    views["dt"] = tensors["dt"].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    views["B"], views["C"] = torch.cat((tensors["B"], tensors["C"]), -1).split(3, dim=-1)
    views["x"] = tensors["x"].transpose(1, 2).contiguous().transpose(1, 2)
    padded = torch.cat((tensors["dt"], tensors["dt"]), -1)  # of which dt is a part, so that it is not dense
    for changed in ({}, {"dt": padded[..., :24]}):
        found = [results(FUNCTIONS[way], t, dtype=torch.float32) for t in (tensors, views | changed)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", ["chunked", "cpp"])
def test_the_same_input_gives_the_same_bits(way, threads):
    need(way)
    tensors = inputs((5, 64, 2, 40, 8), bias=True, permuted=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(3):
            one, two = (results(FUNCTIONS[way], tensors, dtype=torch.float32) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    finally:
        torch.set_num_threads(before)


def test_the_reference_is_the_recurrence_written_out():
    x, dt, A, B, C, D = inputs((1, 3, 1, 1, 2)).values()
    h, expected = [0.0, 0.0], []
    for t in range(3):
        step = dt[0, t, 0, 0].item()
        for n in range(2):
            decay = torch.exp(torch.tensor(step * A[0, 0, n].item(), dtype=torch.float64)).item()
            h[n] = decay * h[n] + step * B[0, t, 0, n].item() * x[0, t, 0].item()
        expected.append(sum(C[0, t, 0, n].item() * h[n] for n in range(2)) + D[0, 0].item() * x[0, t, 0].item())
    assert selective_scan_reference(x, dt, A, B, C, D)[0, :, 0].tolist() == pytest.approx(expected, rel=1e-12)


def test_directions_are_averaged_each_in_its_own_order():
    tensors = inputs((2, 6, 2, 3, 2))
    orders = torch.stack((torch.arange(6), torch.arange(6).flip(0))).int()
    both = selective_scan_reference(*tensors.values(), orders=orders)
    x, dt, A, B, C, D = tensors.values()
    forwards = selective_scan_reference(x, dt[:, :, :1], A[:1], B[:, :, :1], C[:, :, :1], D[:1])
    turned = [v.flip(1) for v in (x, dt[:, :, 1:], B[:, :, 1:], C[:, :, 1:])]
    backwards = selective_scan_reference(turned[0], turned[1], A[1:], turned[2], turned[3], D[1:]).flip(1)
    torch.testing.assert_close(both, (forwards + backwards) / 2)


def test_the_sham_is_a_scan_that_starts_anew_at_every_token_and_sees_it_twice():
    """An independent account of what memory=False means: each token is a sequence of its own, of length two."""
    tensors = inputs((2, 5, 1, 3, 4))
    x, dt, A, B, C, D = tensors.values()

    def twice(v: Tensor) -> Tensor:  # (B, L, ...) -> (B L, 2, ...)
        return v.flatten(0, 1).unsqueeze(1).repeat_interleave(2, 1)

    alone = selective_scan_reference(twice(x), twice(dt), A, twice(B), twice(C), D)[:, 1].view(x.shape)
    torch.testing.assert_close(selective_scan_reference(*tensors.values(), memory=False), alone)


# ---- which way is taken ----------------------------------------------------------------------------------------------


class OnGPU:
    """What the choice asks of a tensor, without a GPU."""

    dtype, device = torch.float32, torch.device("cuda")


def test_the_choice_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    assert scan.implementation(OnGPU()) == ("triton" if scan.scan_gpu.triton else "chunked")
    monkeypatch.setattr(scan.scan_gpu, "mamba_ssm_installed", lambda: True)
    monkeypatch.setattr(scan.scan_gpu, "triton", object())
    assert scan.implementation(OnGPU()) == "mamba_ssm"
    assert scan.implementation(OnGPU(), memory=False) == "triton"
    assert scan.implementation(OnGPU(), d_state=300) == "triton"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert scan.implementation(OnGPU()) == "triton"
    monkeypatch.setattr(scan.scan_gpu, "triton", None)
    assert scan.implementation(OnGPU()) == "chunked"
    monkeypatch.setenv("HYPOTHESES_SCAN", "mamba_ssm")
    with pytest.raises(UserError, match=r"cannot be had here for float32 on cuda without memory \(the sham\)"):
        scan.implementation(OnGPU(), memory=False)


def test_one_function_chooses(monkeypatch):
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert scan.implementation(double) == "chunked"
    assert scan.implementation(single) == ("cpp" if kernels.library("scan") else "chunked")
    monkeypatch.setattr(kernels, "library", lambda name: None)
    assert scan.implementation(single) == "chunked"
    monkeypatch.setenv("HYPOTHESES_SCAN", "reference")
    assert scan.implementation(single) == "reference"
    monkeypatch.setenv("HYPOTHESES_SCAN", "fast")
    with pytest.raises(UserError, match="choose one of auto, reference, chunked, cpp, triton, mamba_ssm"):
        selective_scan(*inputs((1, 2, 1, 1, 1)).values())


SCRIPT = (
    "import torch; from hypotheses.backbones import kernels, scan\n"
    "torch.manual_seed(0)\n"
    "t = [torch.rand(s) for s in ((1, 9, 4), (1, 9, 1, 4), (1, 4, 2), (1, 9, 1, 2), (1, 9, 1, 2), (1, 4))]\n"
    "t[2] = -t[2]\n"
    "for _ in range(2): y = scan.selective_scan(*t)\n"
    "print(scan.implementation(t[0]), y.double().sum().item())\n"
)


@pytest.mark.parametrize("way", ["cpp", "triton", "mamba_ssm"])
def test_a_way_that_cannot_be_had_here_is_refused(way, monkeypatch):
    monkeypatch.setenv("HYPOTHESES_SCAN", way)
    with pytest.raises(UserError, match=f"{way} cannot be had here for float64 on cpu: choose auto"):
        selective_scan(*inputs((1, 2, 1, 1, 1)).values())


@pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "dt_bias", "orders"])
def test_tensors_that_do_not_belong_together_are_refused(name):
    tensors = inputs((2, 5, 2, 6, 3), bias=True, permuted=True)
    selective_scan(**tensors)
    with pytest.raises(ValueError, match=f"{name} is"):
        selective_scan(**tensors | {name: tensors[name][:1]})  # one image, or one direction, of two
    if name != "orders":
        with pytest.raises(ValueError, match=f"{name} is"):
            selective_scan(**tensors | {name: tensors[name].float()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_images_are_no_error(dtype):
    tensors = {k: v.to(dtype) for k, v in inputs((0, 5, 2, 6, 3)).items()}
    assert selective_scan(**tensors).shape == (0, 5, 6)


def test_orders_of_any_kind(monkeypatch):
    """As int64, and as a part of a larger tensor."""
    need("cpp")
    tensors = {k: v if k == "orders" else v.float() for k, v in inputs((2, 9, 2, 6, 3), permuted=True).items()}
    true = selective_scan(**tensors)
    wide = torch.stack((tensors["orders"], tensors["orders"]), -1).long()[..., 0]
    assert torch.equal(selective_scan(**tensors | {"orders": wide}), true)


def test_nan_is_not_lost():
    """Of any bit pattern: a run that diverges must show it."""
    for bits in (0x7FC00000, 0x7FC00001, 0x7FFFFFFF, -1):
        nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        assert nan.isnan()
        for name in ("x", "dt", "A", "B", "C"):
            tensors = {k: v.float() for k, v in inputs((1, 40, 1, 20, 2)).items()}
            tensors[name].view(-1)[0] = nan[0]
            assert selective_scan(**tensors).isnan().any(), (name, bits)


def test_signs_and_sizes_that_no_layer_makes():
    """A of zero and of either sign, steps of either sign, around the edge from which on exponentials have to be clamped, in one
    block of channels; a NaN in A harms its own state alone."""
    tensors = inputs((2, 40, 2, 24, 5), 1.0)
    tensors["A"][:, ::3] = 0
    tensors["A"][:, 1::3] *= -1
    tensors["dt"] = torch.where(torch.arange(40)[:, None, None] % 7 == 3, -0.5, 0.3).expand_as(tensors["dt"]).double()
    tensors["A"] *= 0.1 * (2.0 ** torch.arange(24) / 2**18).clamp(0, 1)[:, None]
    check_against_reference(tensors)
    far = {k: v.clone() for k, v in tensors.items()}
    far["A"] = -far["A"].abs()
    far["dt"] = 4000 * far["dt"].abs()  # beyond the edge in some channels, and within it in others
    check_against_reference(far)
    if kernels.library("scan") is not None:
        far["A"][0, 5, 1] = float("nan")  # behind a larger one and before a smaller one
        true, found = (
            results(f, far, True, d)
            for f, d in ((selective_scan_reference, torch.float64), (FUNCTIONS["cpp"], torch.float32))
        )
        of_A = NAMES.index("A") + 1
        assert found[of_A].isnan().sum() == true[of_A].isnan().sum()
        kept = ~true[of_A].isnan()
        assert torch.allclose(found[of_A][kept].double(), true[of_A][kept], rtol=1e-4, atol=1e-9)


def check_against_reference(tensors: dict[str, Tensor]) -> None:
    true = results(selective_scan_reference, tensors, True)
    for way, dtype in WAYS.items():
        if way != "cpp" or kernels.library("scan") is not None:
            found = results(FUNCTIONS[way.split()[0]], tensors, True, dtype)
            for name, a, b in zip(("y", *NAMES), found, true, strict=False):
                assert (a.double() - b).norm() <= 3e-6 * b.norm(), (way, name)


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )


def test_without_a_compiler_one_line_says_so_and_the_result_is_the_same(tmp_path):
    without = run(CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert without.returncode == 0, without.stderr
    assert without.stderr.count("\n") == 1 and "no compiler no-such-compiler" in without.stderr
    assert "plain PyTorch is used" in without.stderr
    off = run(HYPOTHESES_KERNELS="off")
    assert off.returncode == 0 and off.stderr == ""
    way, total = without.stdout.split()
    assert way == "chunked" and off.stdout == without.stdout
    assert float(run().stdout.split()[1]) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.slow
def test_a_user_without_a_home_and_a_compiler_without_a_version_are_no_obstacles(tmp_path):
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    done = run(CXX=str(silent), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0 and done.stdout.startswith("chunked") and done.stderr.count("\n") == 1
    if kernels.library("scan") is not None:
        (tmp_path / "cache" / "hypotheses").chmod(0o777)  # others could put a library there
        shared = run(XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert shared.stdout.startswith("cpp") and not list((tmp_path / "cache" / "hypotheses").iterdir())


def test_a_compiler_that_fails_is_named(tmp_path):
    broken = tmp_path / "compiler"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo 1 && exit\necho 'error: no such option -fopenmp' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    done = run(CXX=str(broken), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0 and done.stdout.startswith("chunked")
    assert "no such option -fopenmp" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_library_is_made_once_and_kept(tmp_path):
    if kernels.library("scan") is None:
        pytest.skip("no compiler here")
    first = run(XDG_CACHE_HOME=str(tmp_path))
    assert first.stdout.startswith("cpp") and first.stderr == ""
    made = list((tmp_path / "hypotheses").iterdir())
    assert [f.suffix for f in made] == [".so"]  # nothing half made is left
    stamp = made[0].stat().st_mtime_ns
    assert run(XDG_CACHE_HOME=str(tmp_path)).stdout == first.stdout
    assert made[0].stat().st_mtime_ns == stamp
    made[0].write_bytes(b"damaged")  # by a full disk, say
    assert run(XDG_CACHE_HOME=str(tmp_path)).stdout == first.stdout


@pytest.mark.slow
def test_a_home_that_cannot_be_written_to_is_no_obstacle(tmp_path):
    if kernels.library("scan") is None:
        pytest.skip("no compiler here")
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(XDG_CACHE_HOME=str(blocked)).stdout.startswith("cpp")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64" or kernels.library("scan") is None, reason="no x86 compiler here")
@pytest.mark.parametrize("processor", ["x86-64-v3", "x86-64-v2"])
def test_the_kernels_are_right_on_other_processors(tmp_path, processor):
    """Built for AVX2, whose vectors are half as long, and for what has no intrinsics of ours, the same tests pass."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec g++ "$@" $([ "$1" = --version ] || echo -march={processor})\n')
    compiler.chmod(0o755)
    files = ("tests/test_scan.py", "tests/test_gate.py", "tests/test_norm.py", "tests/test_ssm.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", "not compiler and not library and not home", *files],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)},
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(list((tmp_path / "hypotheses").glob("*.so"))) == 3
