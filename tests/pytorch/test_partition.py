"""``partition=True``: torch runs what engines can't, with few engines around it."""

from __future__ import annotations

import io
import pickle

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tactician.torch import PartitionedModule, TRTModule, torch2trt  # noqa: E402
from tactician.torch.calls import export  # noqa: E402
from tactician.torch.lower import piece_of  # noqa: E402
from tactician.torch.partition import report, unsupported  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")


class Qr(nn.Module):
    """Two branches beside an unsupported call, and work before and after it."""

    def __init__(self, calls: int = 1):
        super().__init__()
        self.calls = calls
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x, scale=None):
        side = torch.tanh(self.c(x).exp() + 1).sigmoid()
        y = torch.relu(self.a(x) + 1).exp().tanh() * 2
        for _ in range(self.calls):
            y = torch.linalg.qr(y)[0]
            y = self.b(y).softmax(-1).tanh().exp() + 1
        return {"y": y * side, "side": side}


def convert(module, inputs, **options):
    return torch2trt(module.eval(), inputs, optimization_level=0, threads=1, partition=True,
                     **options)


def check(engine, module, *args) -> None:
    with torch.no_grad():
        got, want = engine(*args), module(*args)
    for k in want:
        torch.testing.assert_close(got[k], want[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("calls", [1, 2])
def test_engines_are_few(calls: int) -> None:
    module, x = Qr(calls).eval(), torch.randn(6, 6)
    engine = convert(module, [x])
    assert isinstance(engine, PartitionedModule) and len(engine.engines) == calls + 1
    check(engine, module, x)


def test_dynamic_sizes() -> None:
    module = Qr().eval()
    engine = convert(module, [torch.randn(7, 6)], min_shapes=[(6, 6)], max_shapes=[(20, 6)])
    for n in (6, 7, 20):
        check(engine, module, torch.randn(n, 6))


def test_everything_supported_is_one_engine() -> None:
    assert isinstance(convert(nn.Linear(3, 2), [torch.randn(2, 3)]), TRTModule)


def test_the_report_names_all_calls_with_their_lines() -> None:
    piece = piece_of(export(Qr(2).eval(), (torch.randn(6, 6),), {}, [None]))
    text = report(unsupported(piece))
    assert text.startswith("2 call(s)") or "1 more place" in text
    assert "linalg_qr" in text and "test_partition.py" in text and "(Qr)" in text


class Indices(nn.Module):
    """A size that depends on data keeps everything after it in torch."""

    def forward(self, x):
        y = (x * 2).tanh().exp().relu().sigmoid() + 1
        return {"y": torch.nonzero(y > 1.6) * 2}


def test_sizes_that_depend_on_data() -> None:
    x = torch.randn(4, 5)
    check(convert(Indices(), [x]), Indices(), x)


def test_pickling() -> None:
    module, x = Qr().eval(), torch.randn(6, 6)
    engine = convert(module, [x])
    again = pickle.loads(pickle.dumps(engine))
    check(again, module, x)
    file = io.BytesIO()
    torch.save(engine, file)
    file.seek(0)
    check(torch.load(file, weights_only=False), module, x)


def test_an_engine_alone_is_pickled_too() -> None:
    module, x = nn.Linear(3, 2).eval(), torch.randn(2, 3)
    again = pickle.loads(pickle.dumps(convert(module, [x])))
    torch.testing.assert_close(again(x), module(x).detach())


def test_arguments_that_copies_of_graphs_rename() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = torch.nn.LSTM(4, 4)

        def forward(self, input):
            y = (self.cell(input)[0][:, 0] * 2).tanh().exp().sigmoid() + 1
            return (torch.linalg.qr(y)[0] * 2).tanh().exp().sigmoid() + 1

    from tactician.torch.calls import export
    from tactician.torch.compiling import compile_piece
    from tactician.torch.engines import Settings
    from tactician.torch.lower import piece_of

    x, module = torch.randn(4, 2, 4), Model().eval()
    piece = piece_of(export(module, (x,), {}, [None]))
    before = {n.name for n in piece.module.graph.nodes if n.op == "placeholder"}
    from tactician.torch import partition as P

    whole = P.CapabilityBasedPartitioner

    class Renames(whole):  # as torch 2.11 does: its copy calls `input` `input_1`
        def fuse_partitions(self, *args, **kwargs):
            fused = super().fuse_partitions(*args, **kwargs)
            for node in fused.graph.nodes:
                if node.op == "placeholder":
                    node.name = f"{node.name}_1"
            return fused

    P.CapabilityBasedPartitioner = Renames
    try:
        mixed = compile_piece(piece, Settings(optimization_level=0, threads=1), partition=True)
    finally:
        P.CapabilityBasedPartitioner = whole
    assert "input" in before and len(mixed.engines) == 2
    torch.testing.assert_close(mixed.run_flat([x])[0], module(x), rtol=1e-4, atol=1e-4)
