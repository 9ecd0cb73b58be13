"""cuDNN and cuBLASLt as numpy: they take the real calls, keep what they are told, and compute it.

Numbers and types of attributes are those of the libraries' headers, written down here again, so
that a wrong one in the package is an error. Device addresses are host addresses.
"""

import ctypes
import json
import math

import ml_dtypes
import numpy as np

from tactician.ops.conv import Axis, correlate

CUDNN_TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 3: np.int8, 4: np.int32, 6: np.uint8,
               9: ml_dtypes.bfloat16, 11: np.bool_}
LT_TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 3: np.int8, 10: np.int32,
            14: ml_dtypes.bfloat16, 28: ml_dtypes.float8_e4m3fn}
HANDLE, DATA_TYPE, BOOLEAN, INT64, FLOAT, DOUBLE, VOID_PTR = range(7)
CONV_MODE, HEUR_MODE, NUMERICAL, POINTWISE_MODE, DESCRIPTOR, REDUCTION = 7, 8, 11, 14, 15, 18
BEHAVIOUR, CHAR = 19, 24
C_TYPES = {HANDLE: ctypes.c_void_p, DATA_TYPE: ctypes.c_int, BOOLEAN: ctypes.c_bool,
           INT64: ctypes.c_int64, FLOAT: ctypes.c_float, DOUBLE: ctypes.c_double,
           VOID_PTR: ctypes.c_void_p, CONV_MODE: ctypes.c_int, HEUR_MODE: ctypes.c_int,
           NUMERICAL: ctypes.c_int, POINTWISE_MODE: ctypes.c_int, DESCRIPTOR: ctypes.c_void_p,
           REDUCTION: ctypes.c_int, BEHAVIOUR: ctypes.c_int, CHAR: ctypes.c_char}
# descriptor type -> {attribute: its type}; those that a finalized descriptor must have are upper
SETTABLE = {
    0: {0: POINTWISE_MODE, 1: DATA_TYPE, 3: DOUBLE, 4: DOUBLE, 5: DOUBLE, 6: DOUBLE, 8: DOUBLE},
    1: {100: DATA_TYPE, 101: CONV_MODE, 102: INT64, 103: INT64, 104: INT64, 105: INT64,
        106: INT64},
    4: {200: HEUR_MODE, 201: DESCRIPTOR, 204: DESCRIPTOR},
    5: {400: HANDLE, 401: DESCRIPTOR, 405: CHAR, 407: DESCRIPTOR},
    10: {700: FLOAT, 701: FLOAT, 702: DESCRIPTOR, 703: DESCRIPTOR, 704: DESCRIPTOR,
         705: DESCRIPTOR},
    12: {706: FLOAT, 707: FLOAT, 708: DESCRIPTOR, 709: DESCRIPTOR, 710: DESCRIPTOR,
         711: DESCRIPTOR},
    13: {750: DESCRIPTOR, 751: DESCRIPTOR, 752: DESCRIPTOR, 753: DESCRIPTOR, 758: DESCRIPTOR},
    15: {800: HANDLE, 801: DESCRIPTOR},
    16: {1000: INT64, 1001: VOID_PTR, 1003: VOID_PTR},
    17: {900: INT64, 901: DATA_TYPE, 902: INT64, 903: INT64, 906: INT64, 907: BOOLEAN,
         908: BOOLEAN},
    18: {1500: DATA_TYPE},
    19: {1520: DESCRIPTOR, 1521: DESCRIPTOR, 1522: DESCRIPTOR, 1523: DESCRIPTOR},
    21: {1600: REDUCTION, 1601: DATA_TYPE},
    22: {1610: DESCRIPTOR, 1611: DESCRIPTOR, 1612: DESCRIPTOR},
    38: {2701: HANDLE, 2702: CHAR},
    41: {2800: DESCRIPTOR, 2801: DESCRIPTOR, 2802: DESCRIPTOR, 2803: DESCRIPTOR,
         2805: DESCRIPTOR},
}  # fmt: skip
REQUIRED = {0: {0, 1}, 1: {100, 101, 102, 103, 104, 105, 106}, 4: {200, 201},
            10: {700, 701, 702, 703, 704, 705}, 12: {706, 707, 708, 709, 710, 711},
            13: {750, 751, 753}, 15: {801}, 16: {1000, 1001}, 17: {900, 901, 902, 903, 906},
            18: {1500}, 19: {1520, 1521, 1522, 1523}, 21: {1600, 1601}, 22: {1610, 1611, 1612},
            41: {2800, 2801, 2802, 2803}}  # fmt: skip
ENGINES = 3


class Function:
    """A library's function: callable, and takes ``restype`` as ctypes functions do."""

    def __init__(self, call):
        self.call = call

    def __call__(self, *args):
        return self.call(*args)


class Library:
    """Functions are the methods whose names start with the library's prefix."""

    def __init__(self):
        self.calls = []
        for name in dir(type(self)):
            if name.startswith(("cudnn", "cublasLt")):
                setattr(self, name, Function(getattr(self, name)))


def number(x):
    return x.value if hasattr(x, "value") else int(x)


def at(pointer, c_type, count):
    """Elements at a pointer."""
    address = number(pointer)
    return list((c_type * count).from_address(address)) if count else []


def memory(address, dtype, shape, strides):
    """An array over memory, strides in elements."""
    dtype = np.dtype(dtype)
    last = sum((d - 1) * s for d, s in zip(shape, strides, strict=True)) + 1
    raw = np.frombuffer((ctypes.c_char * (last * dtype.itemsize)).from_address(address), dtype)
    steps = [s * dtype.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(raw, shape, steps, writeable=True)


class FakeCudnn(Library):
    """The backend API. ``refuse`` may name a status that making a plan returns."""

    def __init__(self, version=91901):
        super().__init__()
        self.version, self.next, self.d = version, 1000, {}
        self.plan_status = 0
        self.load_status = 0
        self.notes = []
        self.executed = []
        self.execute_status = []  # of the next runs

    def cudnnGetVersion(self):
        return self.version

    def cudnnGetLastErrorString(self, buffer, size):
        buffer.value = b"the fake says no"

    def cudnnCreate(self, handle):
        handle._obj.value = 7
        return 0

    def cudnnSetStream(self, handle, stream):
        self.calls.append(("stream", stream.value))
        return 0

    def cudnnBackendCreateDescriptor(self, kind, out):
        self.next += 8
        self.d[self.next] = {"kind": kind.value, "set": {}, "final": False}
        out._obj.value = self.next
        return 0

    def cudnnBackendDestroyDescriptor(self, d):
        self.d[d.value]["gone"] = True
        return 0

    def cudnnBackendSetAttribute(self, d, attribute, kind, count, data):
        found = self.d[d.value]
        if found["final"]:
            return 2000
        if SETTABLE[found["kind"]].get(attribute.value) != kind.value:
            return 2010
        values = at(data, C_TYPES[kind.value], count.value)
        if kind.value == DESCRIPTOR:
            if not all(self.d[v]["final"] for v in values):
                return 2004
            values = [self.d[v] for v in values]
        if kind.value == CHAR:
            values = b"".join(values)
        found["set"][attribute.value] = values
        return 0

    def cudnnBackendFinalize(self, d):
        found = self.d[d.value]
        if REQUIRED.get(found["kind"], set()) - set(found["set"]):
            return 2000
        if found["kind"] == 5:
            loads = 405 in found["set"]
            status = self.load_status if loads else self.plan_status
            if status:
                return status
            graph = (json.loads(found["set"][405]) if loads
                     else self.describe(found["set"][401][0]["graph"]))
            found["graph"] = graph
        found["final"] = True
        return 0

    def cudnnBackendGetAttribute(self, d, attribute, kind, count, got, data):
        found, a = self.d[d.value], attribute.value
        if a in (202, 300):
            n = ENGINES if a == 202 else 1
            if count.value:
                places = at(data, ctypes.c_void_p, count.value)
                for i, place in enumerate(places[:n]):
                    graph = found["set"][201][0] if a == 202 else found["graph"]
                    self.d[place].update(graph=graph, index=i, final=True)
            got._obj.value = n
            return 0
        values = {1303: self.notes, 1305: [], 402: [512]}.get(a)
        if a == 405:
            values = [bytes([c]) for c in json.dumps(found["graph"]).encode()]
        if a == 2702:
            values = [bytes([c]) for c in b"{}"]
        got._obj.value = len(values)
        if count.value:
            n = min(count.value, len(values))
            array = (C_TYPES[kind.value] * n)(*values[:n])
            ctypes.memmove(data, array, ctypes.sizeof(array))
        return 0

    def describe(self, graph):
        """A graph as JSON: tensors and operations with resolved attributes."""

        def plain(d):
            return {str(k): [plain(v) if isinstance(v, dict) else v for v in vs]
                    for k, vs in d["set"].items()} | {"kind": d["kind"]}

        return [plain(op) for op in graph["set"][801]]

    def cudnnBackendExecute(self, handle, plan, pack):
        graph, given = self.d[plan.value]["graph"], self.d[pack.value]["set"]
        assert handle.value == 7 and self.d[pack.value]["final"]
        if self.execute_status:
            return self.execute_status.pop()
        self.executed.append(graph)
        run_graph(graph, dict(zip(given[1000], given[1001], strict=True)))
        return 0


def uid(t):
    return t["906"][0]


def run_graph(graph, pointers):
    """Computes the operations in f32 (f64 for checking) on the memory that pointers name."""
    values = {}

    def read(t):
        if uid(t) in values:
            return values[uid(t)]
        assert not t.get("907"), "reads a virtual tensor that nothing wrote"
        x = memory(pointers[uid(t)], CUDNN_TYPES[t["901"][0]], t["902"], t["903"])
        return x.astype(np.float64)

    def write(t, x):
        dtype = np.dtype(CUDNN_TYPES[t["901"][0]])
        x = np.broadcast_to(x, t["902"])
        if dtype.kind in "i":
            x = np.clip(np.rint(x), np.iinfo(dtype).min, np.iinfo(dtype).max)
        values[uid(t)] = x
        if not t.get("907"):
            memory(pointers[uid(t)], dtype, t["902"], t["903"])[...] = x.astype(dtype)

    for op in graph:
        if op["kind"] == 10:
            write(op["705"][0], conv(read(op["704"][0]), read(op["703"][0]), op["702"][0]))
        elif op["kind"] == 12:
            y = op["710"][0]
            write(y, dgrad(read(op["711"][0]), read(op["709"][0]), op["708"][0], y["902"]))
        elif op["kind"] == 13:
            args = [read(op[k][0]) for k in ("751", "752", "758") if k in op]
            write(op["753"][0], pointwise(op["750"][0], args))
        elif op["kind"] == 19:
            a, b = read(op["1520"][0]), read(op["1521"][0])
            b = np.repeat(b, a.shape[1] // b.shape[1], 1)
            write(op["1522"][0], a @ b)
        elif op["kind"] == 22:
            fn = {0: np.sum, 3: np.max}[op["1612"][0]["1600"][0]]
            write(op["1611"][0], fn(read(op["1610"][0]), axis=-1, keepdims=True))
        else:
            assert op["kind"] == 41
            q, k, v, scale = (read(op[k][0]) for k in ("2800", "2801", "2802", "2805"))
            k, v = (np.repeat(t, q.shape[1] // t.shape[1], 1) for t in (k, v))
            s = q @ k.swapaxes(2, 3) * scale
            e = np.exp(s - s.max(-1, keepdims=True))
            write(op["2803"][0], e / e.sum(-1, keepdims=True) @ v)


def axes_of(x, w, c):
    out = []
    for i in range(c["106"][0]):
        size, k = x.shape[2 + i], w.shape[2 + i]
        pre, post, s, d = (c[a][i] for a in ("105", "104", "103", "102"))
        count = (size + pre + post - (k - 1) * d - 1) // s + 1
        out.append(Axis(size, count, pre, post, k, s, d))
    return out


def conv(x, w, c):
    assert c["101"] == [1], "must be a cross-correlation"
    return correlate(x, w, axes_of(x, w, c), x.shape[1] // w.shape[1])


def dgrad(dy, w, c, shape):
    """Backward data: the transpose of `conv` as a matrix."""
    dx = np.zeros(shape)
    for place in np.ndindex(*w.shape[2:]):
        for out in np.ndindex(*dy.shape[2:]):
            where = tuple(o * s - p + k * d for o, s, p, k, d in zip(
                out, c["103"], c["105"], place, c["102"], strict=True))
            if all(0 <= i < n for i, n in zip(where, shape[2:], strict=True)):
                tap = w[(slice(None), slice(None), *place)]
                dx[(slice(None), slice(None), *where)] += dy[
                    (slice(None), slice(None), *out)] @ tap
    return dx


def pointwise(d, args):
    mode, x = d["0"][0], args[0]
    lower, upper = d.get("3", [0.0])[0], d.get("4", [math.inf])[0]
    slope, alpha, beta = d.get("5", [0.0])[0], d.get("6", [1.0])[0], d.get("8", [1.0])[0]
    erf = np.vectorize(math.erf)
    one = {
        4: np.sqrt, 10: np.abs, 13: np.exp, 15: np.log, 16: np.negative, 20: erf,
        100: lambda x: np.minimum(np.where(x > lower, x, lower + slope * (x - lower)), upper),
        101: np.tanh, 102: lambda x: 1 / (1 + np.exp(-x)),
        103: lambda x: np.where(x > 0, x, alpha * (np.exp(x) - 1)),
        104: lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
        106: lambda x: x / (1 + np.exp(-beta * x)),
        107: lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    }
    if mode in one:
        assert len(args) == 1
        return one[mode](x)
    two = {0: np.add, 1: np.multiply, 2: np.minimum, 3: np.maximum, 6: np.divide, 9: np.subtract,
           302: np.greater, 303: np.greater_equal, 304: np.less, 305: np.less_equal}
    if mode in two:
        return two[mode](x, args[1])
    assert mode == 601
    return np.where(args[2], x, args[1])


# --- cuBLASLt --------------------------------------------------------------------------------


class FakeLt(Library):
    """cublasLtMatmul and what it needs, columns first as in the documentation."""

    def __init__(self, version=130100):
        super().__init__()
        self.version, self.next, self.d = version, 500, {}
        self.found = 3
        self.check_status = 0
        self.streams = []

    def cublasLtGetVersion(self):
        return self.version

    def cublasLtCreate(self, handle):
        handle._obj.value = 9
        return 0

    def _new(self, out, **what):
        self.next += 8
        self.d[self.next] = what
        out._obj.value = self.next
        return 0

    def cublasLtMatmulDescCreate(self, out, compute, scale):
        return self._new(out, compute=compute.value, scale=scale.value)

    def cublasLtMatrixLayoutCreate(self, out, dtype, rows, cols, ld):
        if ld.value < rows.value:
            return 7
        return self._new(out, dtype=dtype.value, rows=rows.value, cols=cols.value, ld=ld.value,
                         batch=1, stride=0)

    def cublasLtMatmulPreferenceCreate(self, out):
        return self._new(out)

    def cublasLtMatmulDescDestroy(self, d):
        return 0

    cublasLtMatrixLayoutDestroy = cublasLtMatmulPreferenceDestroy = cublasLtMatmulDescDestroy

    def cublasLtMatmulDescSetAttribute(self, d, attribute, data, size):
        sizes = {3: 4, 4: 4, 7: 4, 8: 8, 26: 4}
        if sizes[attribute.value] != size.value:
            return 7
        self.d[d.value][attribute.value] = data._obj.value or 0
        return 0

    def cublasLtMatrixLayoutSetAttribute(self, d, attribute, data, size):
        name, want = {5: ("batch", 4), 6: ("stride", 8)}[attribute.value]
        if want != size.value:
            return 7
        self.d[d.value][name] = data._obj.value
        return 0

    def cublasLtMatmulPreferenceSetAttribute(self, d, attribute, data, size):
        if {1: 8, 5: 4, 6: 4, 7: 4, 8: 4}[attribute.value] != size.value:
            return 7
        self.d[d.value][attribute.value] = data._obj.value
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, h, desc, a, b, c, d, pref, most, results, count):
        n = min(self.found, most.value)
        for i in range(n):
            results[i].algo[0] = 0xA1600 + i
            results[i].workspace, results[i].state = 1024 * i, 0
            assert self.d[pref.value][1] >= 1024 * i
        count._obj.value = n
        return 0

    def cublasLtMatmulAlgoCheck(self, h, desc, a, b, c, d, algo, result):
        result._obj.workspace = 1024 * (algo._obj[0] - 0xA1600)
        return self.check_status

    def cublasLtMatmul(self, h, desc, alpha, a, la, b, lb, beta, c, lc, d, ld, algo, ws, size,
                       stream):
        assert h.value == 9
        self.streams.append(stream.value)
        self.calls.append(algo._obj[0])
        p = self.d[desc.value]

        def matrix(pointer, layout):
            m = self.d[layout.value]
            shape = (m["batch"], m["rows"], m["cols"])
            return memory(pointer.value, LT_TYPES[m["dtype"]], shape, (m["stride"], 1, m["ld"]))

        x, y = (matrix(q, w).astype(np.float64) for q, w in ((a, la), (b, lb)))
        x = x.swapaxes(1, 2) if p[3] else x
        y = y.swapaxes(1, 2) if p[4] else y
        out = alpha._obj.value * (x @ y)
        if beta._obj.value:
            out = out + beta._obj.value * matrix(c, lc).astype(np.float64)
        result = matrix(d, ld)
        if p[7] & 4:
            out = out + memory(p[8], LT_TYPES[p[26]], (result.shape[1],), (1,)).astype(
                np.float64)[:, None]
        if p[7] & 2:
            out = np.maximum(out, 0)
        if p[7] & 32:
            out = pointwise({"0": [107]}, [out])
        if result.dtype.kind == "i":
            out = np.clip(np.rint(out), np.iinfo(result.dtype).min, np.iinfo(result.dtype).max)
        result[...] = out.astype(result.dtype)
        return 0
