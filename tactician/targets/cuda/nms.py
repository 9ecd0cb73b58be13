"""Non-maximum suppression: a block per batch entry and class keeps box after box.

Each pass over the scores takes out what the last kept box suppresses and finds the next best, so
nothing is sorted. A second kernel packs the kept boxes of all classes, once their number is known.
"""

from __future__ import annotations

from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dims import DimLike
from ...ir.graph import Node, Value
from ...ops._shapes import scalar_int
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from .emit import Frame, is_wide
from .lines import loaded, named, pow2, refuse_types, working
from .product import Writer
from .selection import finish_count, sum_before
from .types import tl_name

_LOWEST = "-3.0e38"  # alive scores are at least this; suppressed ones are minus infinity
_PACK = 128


@register_tactic
class NmsTactic(Tactic):
    """ONNX's NonMaxSuppression."""

    name = "nms"
    target = "cuda"
    timed = False

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op != "nms":
            return "not non-maximum suppression"
        if region.stages:
            return "nms has no epilogue"
        boxes, scores = node.inputs[:2]
        assert boxes is not None and scores is not None
        if any(d == 0 for v in (boxes, scores) for d in v.dims):
            return "there is nothing to compute"
        if not boxes.dtype.is_float or not scores.dtype.is_float:
            return "boxes and scores are no floats"
        return refuse_types([boxes, scores], device.arch)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.anchor
        assert node is not None
        return _Nms(node).build()


class _Nms:
    """Writes both kernels."""

    def __init__(self, node: Node):
        self.node = node
        boxes, scores, most, iou, least = (*node.inputs, None, None, None)[:5]
        assert boxes is not None and scores is not None
        self.boxes, self.scores = boxes, scores
        self.most, self.iou, self.least = most, iou, least
        self.batch, self.classes, self.count = scores.dims
        each = None if most is None else scalar_int(most)
        limit = self.count if each is None else D.dim_min(self.count, D.dim_max(each, 0))
        self.groups: DimLike = self.batch * self.classes
        self.kept = Value("kept", T.i32, (self.groups, D.dim_max(limit, 1)))
        self.counts = Value("counts", T.i32, (self.groups,))
        self.total = Value("total", T.i64, (1,))
        self.work = working(boxes.dtype)

    def build(self) -> Kernel:
        kernel = self._pack()
        kernel.before = (self._suppress(),)
        return kernel

    # --- which boxes stay -----------------------------------------------------------------

    def _suppress(self) -> Kernel:
        frame = Frame(is_wide([self.boxes, self.scores]))
        self.frame, size = frame, frame.size
        frame.workspace = frame.counters = True
        self.width = pow2(self.count, 32, 4096, 2048)
        kind = tl_name(self.work)
        w = Writer()
        w("pid = tl.program_id(0)", f"n = {size(self.count)}",
          f"batch = pid // {size(self.classes)}",
          f"boxes = {frame.pointer(self.boxes)} + batch.to(tl.int64) * n * 4",
          f"scores = {frame.pointer(self.scores)} + pid.to(tl.int64) * n",
          f"alive = workspace.to(tl.pointer_type({kind})) + pid.to(tl.int64) * n",
          f"kept = {frame.pointer(self.kept)} + pid.to(tl.int64) * {size(self.kept.dims[1])}",
          "none = -float('inf')")  # fmt: skip
        self._limits(w)
        w(f"best = tl.full((), none, {kind})", "at = pid * 0")
        with w.block(f"for c in range(0, n, {self.width}):"):
            w(f"j = c + tl.arange(0, {self.width})",
              "s = tl.load(scores + j, mask=j < n, other=0)",
              f"s = {loaded('s', self.scores.dtype)}.to({kind})",
              f"s = tl.maximum(s, {_LOWEST})")  # fmt: skip
            # a score that is no number exceeds nothing
            good = "(s > least) & (j < n)" if self.least is not None else "(s == s) & (j < n)"
            w(f"s = tl.where({good}, s, none).to({kind})")
            self._note(w)
        w("count = pid * 0")
        with w.block("while (count < most) & (best > none):"):
            w("tl.store(kept + count, at)", "count += 1")
            self._box(w, "l", "at", "")
            w("last = at", f"best = tl.full((), none, {kind})", "at = last * 0",
              "tl.debug_barrier()")  # fmt: skip
            with w.block(f"for c in range(0, n, {self.width}):"):
                w(f"j = c + tl.arange(0, {self.width})",
                  "s = tl.load(alive + j, mask=j < n, other=none)")  # fmt: skip
                self._box(w, "b", "j", ", mask=j < n, other=0")
                self._overlap(w)
                w(f"s = tl.where((over > iou) | (j == last), none, s).to({kind})")
                self._note(w)
        w(f"tl.store({frame.pointer(self.counts)} + pid, count)")
        finish_count(w, frame, self.counts, self.total, self.groups)
        warps = max(4, min(16, self.width // 256))
        launch = Launch(
            grid=(self.groups,), warps=warps, stages=1, counters=1,
            workspace=self.groups * self.count * self.work.size,
        )
        kernel = named("suppress", frame, w.lines, launch)
        size_found = self.node.output.dims[0]
        assert isinstance(size_found, D.Dim)
        kernel.finds = self.total, (size_found,)
        return kernel

    def _limits(self, w: Writer) -> None:
        """How many boxes are kept, and the thresholds, as scalars."""
        load, kind = self.frame.pointer, tl_name(self.work)
        if self.most is None:
            w("most = pid * 0")
        else:
            w(f"most = tl.minimum(tl.load({load(self.most)}).to(tl.int64), n).to(tl.int32)")
        if self.iou is None:
            w(f"iou = tl.full((), 0.0, {kind})")
        else:
            w(f"iou = tl.load({load(self.iou)}).to({kind})")
        if self.least is not None:
            w(f"least = tl.load({load(self.least)}).to({kind})")

    def _note(self, w: Writer) -> None:
        """Stores the scores of a piece and remembers the best so far, the first of equal ones."""
        w("tl.store(alive + j, s, mask=j < n)", "top = tl.max(s, 0)",
          "first = tl.min(tl.where(s == top, j, 2147483647), 0)",
          "at = tl.where(top > best, first, at)", "best = tl.maximum(best, top)")  # fmt: skip

    def _box(self, w: Writer, p: str, at: str, mask: str) -> None:
        """Corners and area of boxes, in variables that begin with ``p``."""
        for k in range(4):
            w(f"{p}{k} = tl.load(boxes + {at} * 4 + {k}{mask})",
              f"{p}{k} = {loaded(f'{p}{k}', self.boxes.dtype)}")
        for k in range(2):
            low, high = f"{p}{k}", f"{p}{k + 2}"
            if self.node.attrs.center_box:
                w(f"{p}h = {high} / 2", f"{high} = {low} + {p}h", f"{low} = {low} - {p}h")
            else:
                w(f"{p}h = tl.maximum({low}, {high})", f"{low} = tl.minimum({low}, {high})",
                  f"{high} = {p}h")
        w(f"{p}area = ({p}2 - {p}0) * ({p}3 - {p}1)")

    def _overlap(self, w: Writer) -> None:
        """Sets ``over``: intersection over union with the last box kept."""
        for k in range(2):
            w(f"side{k} = tl.maximum(tl.minimum(l{k + 2}, b{k + 2}) - tl.maximum(l{k}, b{k}), 0)")
        divide = "tl.div_rn(both, safe)" if self.work is T.f32 else "both / safe"
        w("both = side0 * side1", "union = larea + barea - both",
          "safe = tl.where(union > 0, union, 1)",
          f"over = tl.where(union > 0, {divide}, 0)")  # fmt: skip

    # --- all of them together -------------------------------------------------------------

    def _pack(self) -> Kernel:
        frame, w = Frame(), Writer()
        size, out = frame.size, frame.pointer(self.node.output)
        w("pid = tl.program_id(0)")
        sum_before(w, frame, self.counts)
        w(f"count = tl.load({frame.pointer(self.counts)} + pid)",
          f"kept = {frame.pointer(self.kept)} + pid.to(tl.int64) * {size(self.kept.dims[1])}")
        with w.block(f"for c in range(0, count, {_PACK}):"):
            w(f"k = c + tl.arange(0, {_PACK})", "m = k < count",
              "box = tl.load(kept + k, mask=m, other=0)",
              f"to = {out} + (start + k) * 3")  # fmt: skip
            for k, text in enumerate((f"pid // {size(self.classes)} + k * 0",
                                      f"pid % {size(self.classes)} + k * 0", "box")):  # fmt: skip
                w(f"tl.store(to + {k}, ({text}).to(tl.int64), mask=m)")
        return named("pack", frame, w.lines, Launch(grid=(self.groups,), warps=4, stages=1))
