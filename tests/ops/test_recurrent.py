"""rnn against onnxruntime and torch."""

import numpy as np
import pytest
import torch
from ort_oracle import onnx_reference, ort_run
from run_op import build, close, run_op

from tactician.ops import OpError

rng = np.random.default_rng(8)
STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 6
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def operands(cell, direction="forward", lens=None):
    dirs, rows = 2 if direction == "bidirectional" else 1, GATES[cell] * HIDDEN
    xs = [normal(STEPS, BATCH, SIZE), normal(dirs, rows, SIZE), normal(dirs, rows, HIDDEN),
          normal(dirs, 2 * rows), lens, normal(dirs, BATCH, HIDDEN)]
    return xs + [normal(dirs, BATCH, HIDDEN), normal(dirs, 3 * HIDDEN)] * (cell == "lstm")


def compare(cell, xs, onnx=None, **kw):
    # with constant weights the node also unrolls, unless lengths vary
    unrolls = (len(xs) < 5 or xs[4] is None) and kw.get("activations") != ("affine",)
    got = run_op("rnn", xs, const=(1, 2, 3, 7), native=unrolls, dynamic={0: (1,)}, cell=cell,
                 hidden=HIDDEN, **kw)
    direction = kw.get("direction", "forward")
    want = ort_run(cell.upper(), xs, len(got), hidden_size=HIDDEN, direction=direction,
                   **(onnx or {}))
    for a, b in zip(got, want, strict=True):
        close(a, b, slack=3)


@pytest.mark.parametrize("lens", [None, np.array([5, 2, 3], np.int32)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("cell", GATES)
def test_cells(cell, direction, lens):
    compare(cell, operands(cell, direction, lens), direction=direction)


@pytest.mark.parametrize("cell", GATES)
def test_clip(cell):
    compare(cell, operands(cell), {"clip": 0.4}, clip=0.4)


def test_linear_before_reset():
    compare("gru", operands("gru"), {"linear_before_reset": 1}, linear_before_reset=True)


def test_input_forget():
    compare("lstm", operands("lstm"), {"input_forget": 1}, input_forget=True)


def test_only_weights():
    for cell in GATES:
        compare(cell, operands(cell)[:3])


@pytest.mark.parametrize("cell,names", [
    ("rnn", ["Relu"]), ("rnn", ["Affine"]), ("rnn", ["LeakyRelu"]), ("rnn", ["ThresholdedRelu"]),
    ("rnn", ["ScaledTanh"]), ("rnn", ["HardSigmoid"]), ("rnn", ["Elu"]), ("rnn", ["Softsign"]),
    ("rnn", ["Softplus"]), ("gru", ["HardSigmoid", "Softsign"]),
    ("lstm", ["HardSigmoid", "Relu", "Softsign"]),
])  # fmt: skip
def test_activations(cell, names):
    snake = {"LeakyRelu": "leaky_relu", "ThresholdedRelu": "thresholded_relu",
             "ScaledTanh": "scaled_tanh", "HardSigmoid": "hard_sigmoid"}
    ours = tuple(snake.get(n, n.lower()) for n in names)
    with_alpha = ("Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu")
    alphas = [0.3 for n in names if n in with_alpha]
    betas = [0.4 for n in names if n in ("Affine", "ScaledTanh", "HardSigmoid")]
    onnx = {"activations": names, "activation_alpha": alphas or None,
            "activation_beta": betas or None}
    xs = [x if x is None else x * np.float32(0.5) for x in operands(cell)]  # no overflow
    compare(cell, xs, onnx, activations=ours, alpha=(0.3,) * len(names),
            beta=(0.4,) * len(names))


@pytest.mark.parametrize("cell", GATES)
def test_batch_first(cell):
    x, w, r = operands(cell)[:3]
    x = np.ascontiguousarray(x.swapaxes(0, 1))
    got = run_op("rnn", [x, w, r], const=(1, 2), dynamic={0: (0,)}, cell=cell, hidden=HIDDEN,
                 layout=1)
    want = onnx_reference(cell.upper(), [x, w, r], 2, opset=22, hidden_size=HIDDEN, layout=1)
    close(got[0], want[0])
    close(got[1], want[1])


def test_double_lstm_against_torch():
    net = torch.nn.LSTM(SIZE, HIDDEN).double()
    ours = {k: v.detach().numpy() for k, v in net.named_parameters()}

    def gates(a):  # torch: i f g o; here: i o f c
        i, f, g, o = np.split(a, 4)
        return np.concatenate([i, o, f, g])[None]

    x = rng.standard_normal((STEPS, BATCH, SIZE))
    b = np.concatenate([gates(ours["bias_ih_l0"]), gates(ours["bias_hh_l0"])], axis=1)
    got = run_op("rnn", [x, gates(ours["weight_ih_l0"]), gates(ours["weight_hh_l0"]), b],
                 const=(1, 2, 3), cell="lstm", hidden=HIDDEN)
    y, (h, c) = net(torch.from_numpy(x))
    for a, want in zip(got, (y[:, None], h, c), strict=True):
        close(a, want.detach().numpy())


@pytest.mark.parametrize("change,text", [
    ({"hidden": 5}, "w must be"), ({"direction": "both"}, "bidirectional"),
    ({"activations": ("tanh",)}, "needs 3"), ({"activations": ("tanh", "gelu", "tanh")}, "gelu"),
])  # fmt: skip
def test_refuses(change, text):
    with pytest.raises(OpError, match=text):
        build("rnn", operands("lstm")[:3], **{"cell": "lstm", "hidden": HIDDEN, **change})
