"""``torch.compile(…, backend="tactician")``: results, guards, weights, gradients, the cache."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tactician.support.errors import UsageError  # noqa: E402
from tactician.torch import backend as B  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TACTICIAN_ENGINE_CACHE", str(tmp_path / "engines"))
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 5)).eval()


def compiled(module, dynamic=None, **options):
    named = "tactician" in torch._dynamo.list_backends(())
    backend = "tactician" if named else B.tactician  # named where the package is installed
    return torch.compile(module, backend=backend, dynamic=dynamic,
                         options={"optimization_level": 0, "threads": 1, **options})


def close(a, b, tol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch):
    """Every graph the backend compiles."""
    made = []
    init = B.CompiledGraph.__init__
    monkeypatch.setattr(B.CompiledGraph, "__init__",
                        lambda self, *a, **k: (init(self, *a, **k), made.append(self))[0])
    return made


def test_guards_recompile(graphs) -> None:
    model = small()
    f = compiled(model)
    with torch.no_grad():
        for n in (2, 5, 7, 5):
            x = torch.randn(n, 3, 8, 8)
            close(f(x), model(x))
    assert len(graphs) == 2  # the second one takes any batch


def test_changed_weights_are_used(graphs) -> None:
    model, x = small(), torch.randn(2, 3, 8, 8)
    f = compiled(model)
    with torch.no_grad():
        close(f(x), model(x))
        model[0].weight.mul_(2)
        close(f(x), model(x))
        model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
        close(f(x), model(x))
    assert len(graphs) == 1 and len(graphs[0].variants) == 1


def test_weights_that_change_all_the_time_stay_in_torch(graphs) -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    f = compiled(model, min_block_size=1)
    with torch.no_grad():
        for _ in range(6):
            model.weight.add_(1)
            close(f(x), model(x))
    assert graphs[0].eager is not None


def test_gradients() -> None:
    model, x = small(), torch.randn(2, 3, 8, 8, requires_grad=True)
    f = compiled(model)
    f(x).square().sum().backward()
    got = [x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    x.grad = None
    model(x).square().sum().backward()
    for a, b in zip(got, [x.grad, *(p.grad for p in model.parameters())], strict=True):
        close(a, b, 1e-4)


def test_training_mode_keeps_its_statistics() -> None:
    a, x = small().train(), torch.randn(4, 3, 8, 8)
    b = small().train()
    b.load_state_dict(a.state_dict())
    close(compiled(a)(x), b(x), 1e-4)
    close(a[1].running_mean, b[1].running_mean)
    assert int(a[1].num_batches_tracked) == int(b[1].num_batches_tracked)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, n=3):
        y = torch.relu(self.a(x)) * 2 + 1 - torch.sigmoid(x)
        q = torch.linalg.qr(y)[0]
        z = self.b(q).softmax(-1) * n + torch.exp(q) - q.sum(1, True)
        return {"z": z.transpose(0, 1), "n": z.shape[0], "x": x}


@pytest.mark.parametrize("dynamic", [False, True])
def test_unsupported_calls_stay_in_torch(dynamic: bool) -> None:
    model = Mixed().eval()
    f = compiled(model, dynamic, min_block_size=1)
    with torch.no_grad():
        for n in (6, 7):
            x = torch.randn(n, 6)
            got, want = f(x), model(x)
            close(got["z"], want["z"])
            assert got["n"] == n and got["x"] is x and got["z"].stride() == want["z"].stride()


def test_full_compilation_reports_what_is_missing() -> None:
    f = compiled(Mixed().eval(), require_full_compilation=True)
    with torch.no_grad(), pytest.raises(Exception, match="linalg_qr"):
        f(torch.randn(6, 6))


def test_ops_can_be_kept_in_torch(graphs) -> None:
    model, x = small(), torch.randn(2, 3, 8, 8)
    f = compiled(model, torch_executed_ops={"aten.relu"}, min_block_size=1)
    with torch.no_grad():
        close(f(x), model(x))


def test_the_cache_is_used(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        compiled(model)(x)
        files = sorted((tmp_path / "engines").iterdir())
        assert len(files) == 1
        torch._dynamo.reset()
        monkeypatch.setattr("tactician.torch.compiling.build",
                            lambda *a, **k: pytest.fail("it was built again"))
        close(compiled(model)(x), model(x))


def test_keys_tell_engines_apart(tmp_path) -> None:
    model, x = small(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        compiled(model)(x)
        torch._dynamo.reset()
        compiled(model, precision="fp16")(x)
        torch._dynamo.reset()
        model[4].bias.add_(1)
        compiled(model)(x)
        torch._dynamo.reset()
        compiled(model)(torch.randn(3, 3, 8, 8))
    assert len(list((tmp_path / "engines").iterdir())) == 4


def test_a_damaged_cache_is_built_anew(tmp_path) -> None:
    model, x = small(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        compiled(model)(x)
        (file,) = (tmp_path / "engines").iterdir()
        file.write_bytes(file.read_bytes()[:500])
        torch._dynamo.reset()
        close(compiled(model)(x), model(x))


def test_the_cache_forgets_the_oldest(tmp_path) -> None:
    from tactician.torch.cache import EngineCache

    cache = EngineCache(tmp_path, most=10)
    for i in range(3):
        (tmp_path / f"{i}.engine").write_bytes(b"12345")
        import os

        os.utime(tmp_path / f"{i}.engine", (i, i))
    cache._trim()
    assert sorted(p.name for p in tmp_path.glob("*.engine")) == ["1.engine", "2.engine"]


def test_autocast_and_inference_mode() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = torch.ones(2, 16)
    f = compiled(model, min_block_size=1)
    with torch.inference_mode():
        out = f(x)
        close(out, model(x))
        assert out.is_inference()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = f(x)
        assert out.dtype is torch.bfloat16
        close(out, model(x), 2e-2)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="precison"):
        B.Options.of({"precison": "fp16"})
    with pytest.raises(UsageError, match="fp17"):
        B.Options.of({"precision": "fp17"})


@pytest.mark.parametrize("p", ["fp16", torch.float16, "half", {torch.half, torch.float32}])
def test_precisions(p) -> None:
    assert B.Options.of({"precision": p}).settings.precisions == ("fp16",)


def test_several_results_and_graph_breaks() -> None:
    class Breaks(nn.Module):
        def forward(self, x, y):
            a = torch.relu(x @ y).sum(0)
            if a.sum() > 0:
                a = a * 2
            return a.sigmoid() + x[0], (y.T, a)

    model = Breaks()
    f = compiled(model, min_block_size=1)
    x, y = torch.rand(4, 4), torch.rand(4, 4)
    with torch.no_grad():
        for got, want in zip(torch.utils._pytree.tree_leaves(f(x, y)),
                             torch.utils._pytree.tree_leaves(model(x, y)), strict=True):
            close(got, want)


