"""Plans: what is written is read, and nothing else is believed."""

import copy
import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from handmade import exp_sum_graph, exp_sum_program

from tactician.plan.container import ALIGN, pack, unpack
from tactician.plan.format import read_header, read_plan, write_plan
from tactician.support.errors import PlanError


@pytest.fixture(scope="module")
def program():
    p = exp_sum_program("n")
    p.code = [b"\x7fELF not really", b""]
    p.walker = ("some key", b"\x7fELF neither")
    p.network = exp_sum_graph("n")
    p.device, p.settings = "x86_64-some-cpu", {"fp16": True, "level": 3}
    return p


@pytest.fixture(scope="module")
def plan(program):
    return bytes(write_plan(program))


def test_round_trip(program, plan):
    back = read_plan(plan)
    assert back.tensors == program.tensors and back.steps == program.steps
    assert back.profiles == program.profiles and back.symbols == program.symbols
    assert back.code == program.code and back.walker == program.walker
    assert back.settings == program.settings
    assert (back.inputs, back.outputs) == (program.inputs, program.outputs)
    assert (back.name, back.target, back.device) == ("exp_sum", "reference", "x86_64-some-cpu")
    assert str(back.nodes).count("exp") == str(program.nodes).count("exp") > 0
    assert [n.op for n in back.network.nodes] == ["unary", "binary"]
    for a, b in zip(back.constants, program.constants, strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


def test_same_program_same_bytes(program, plan):
    assert write_plan(copy.deepcopy(program)) == plan
    assert write_plan(read_plan(plan)) == plan


def test_bytes_do_not_depend_on_the_process():
    script = "import sys; sys.path[:0] = sys.argv[1:]; import handmade, hashlib;" \
        "from tactician.plan.format import write_plan;" \
        "print(hashlib.sha256(write_plan(handmade.exp_sum_program('n'))).hexdigest())"
    paths = [p for p in sys.path if p]
    runs = {
        subprocess.run([sys.executable, "-c", script, *paths], check=True, text=True,
                       env={"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_sections_are_aligned_and_not_copied(plan):
    _, _, sections = unpack(plan)
    base = np.frombuffer(plan, np.uint8).ctypes.data
    back = read_plan(plan)
    for a in back.constants:
        offset = a.ctypes.data - base
        assert 0 < offset < len(plan) and offset % ALIGN == 0
        assert not a.flags.writeable
    assert len(sections) > 2


def test_header_alone_can_be_read(plan):
    h = read_header(plan[:512])
    assert (h.version, h.target, h.device) == (3, "reference", "x86_64-some-cpu")
    assert h.file_size == len(plan)


@pytest.mark.parametrize("share", np.linspace(0, 1, 200, endpoint=False))
def test_one_flipped_byte_anywhere(plan, share):
    at = int(share * len(plan))
    broken = bytearray(plan)
    broken[at] ^= 1 << (at % 8)
    with pytest.raises(PlanError):
        read_plan(broken)


@pytest.fixture(scope="module")
def large():
    """A container of several pieces and threads, with a tail that is no whole block."""
    rng = np.random.default_rng(0)
    return bytes(pack("reference", "cpu", b"{}", [
        rng.integers(0, 256, n, np.uint8) for n in (30 << 20, 5000, 77)
    ]))


def test_large_files_by_hand(large):
    """The checksum as the module's text describes it, in plain Python."""
    header = struct.unpack_from("<I", large, 12)[0]
    content, digests = large[header:], []
    for at in range(0, len(content), 1 << 20):
        piece = content[at : at + (1 << 20)]
        words = np.frombuffer(piece[: len(piece) // 4096 * 4096], "<u8").reshape(-1, 512)
        with np.errstate(over="ignore"):
            sums = [words.sum(1, dtype="<u8").tobytes(), words.sum(0, dtype="<u8").tobytes()]
        tail = piece[len(piece) // 4096 * 4096 :]
        digests.append(hashlib.sha256(b"".join([*sums, tail])).digest())
    assert hashlib.sha256(b"".join(digests)).digest() == large[64:96]
    assert len(unpack(large)[2]) == 3


@pytest.mark.parametrize("share", np.linspace(0.001, 1, 12, endpoint=False))
@pytest.mark.parametrize("damage", ["bit", "zeros", "swapped words", "swapped blocks"])
def test_damage_in_large_files(large, share, damage):
    at = int(share * len(large)) // 8 * 8
    broken = bytearray(large)
    if damage == "bit":
        broken[at] ^= 4
    elif damage == "zeros":
        broken[at : at + 512] = bytes(len(broken[at : at + 512]))
    else:
        size, apart = (8, 4096) if damage == "swapped words" else (4096, 8192)
        other = at + apart if at + apart + size < len(large) else at - apart
        a, b = large[at : at + size], large[other : other + size]
        broken[at : at + size], broken[other : other + size] = b, a
    with pytest.raises(PlanError, match="content is damaged"):
        unpack(broken)


@pytest.mark.parametrize("at", range(200))
def test_one_flipped_byte_in_the_header(plan, at):
    broken = bytearray(plan)
    broken[at] ^= 0xFF
    with pytest.raises(PlanError):
        read_plan(broken)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 48, 127, 128, 150, 192, 400, -64, -1])
def test_truncated(plan, size):
    with pytest.raises(PlanError, match=r"truncated|not a tactician plan"):
        read_plan(plan[:size])


def test_longer_than_it_says(plan):
    with pytest.raises(PlanError, match="foreign bytes"):
        read_plan(plan + b"\0")


@pytest.mark.parametrize("data", [b"", b"\x7fELF" * 50, b"TACTPLAX" + bytes(200), b"ONNX"])
def test_foreign_files(data):
    with pytest.raises(PlanError, match="not a tactician plan"):
        read_plan(data)


def test_other_version(plan):
    with pytest.raises(PlanError, match=r"format version 77.* reads version 3"):
        read_plan(plan[:8] + struct.pack("<I", 77) + plan[12:])


def resealed(plan, at, new):
    """The plan with bytes replaced and both checksums made right again."""
    out = bytearray(plan)
    out[at : at + len(new)] = new
    header_size, device = (struct.unpack_from("<I", plan, o)[0] for o in (12, 44))
    out[64:96] = hashlib.sha256(hashlib.sha256(out[header_size:]).digest()).digest()  # one piece
    out[96:128] = hashlib.sha256(out[:96] + out[128 : 128 + device]).digest()
    return bytes(out)


@pytest.mark.parametrize("field", range(12, 48, 4))
@pytest.mark.parametrize("number", [0, 1, 2**31, 2**32 - 1])
def test_lying_headers_with_right_checksums(plan, field, number):
    """Even a header that was made on purpose cannot make the reader leave the file."""
    spoiled = bytearray(plan)
    spoiled[field : field + 4] = struct.pack("<I", number)
    if spoiled == plan:
        return
    device = struct.unpack_from("<I", spoiled, 44)[0]
    spoiled[96:128] = hashlib.sha256(
        spoiled[:96] + spoiled[128 : 128 + min(device, len(plan))]
    ).digest()
    with pytest.raises(PlanError):
        read_plan(spoiled)


@pytest.mark.parametrize("entry", range(3))
@pytest.mark.parametrize("number", [0, 1, 64, 2**40, 2**64 - 64])
def test_lying_section_tables(plan, entry, number):
    at = struct.unpack_from("<Q", plan, 32)[0] + 8 * entry
    if struct.unpack_from("<Q", plan, at)[0] == number:
        return
    with pytest.raises(PlanError):
        read_plan(resealed(plan, at, struct.pack("<Q", number)))


def edited(plan, change):
    """The plan with edited metadata, packed anew."""
    header, text, sections = unpack(plan)
    meta = json.loads(bytes(text))
    change(meta)
    return pack(header.target, header.device, json.dumps(meta).encode(), sections)


def put(*path):
    def change(meta):
        at = meta
        for key in path[:-2]:
            at = at[key]
        at[path[-2]] = path[-1]
    return change


@pytest.mark.parametrize("change, reason", [
    (put("steps", "l", 0, "r", 1, "node", 7), "node 7 of 2"),
    (put("steps", "l", 0, "r", 1, "outputs", [99]), "tensor 99"),
    (put("steps", "l", 0, "r", 1, "inputs", [-2]), "tensor -2"),
    (put("steps", "l", 0, "r", 1, "kind", "magic"), "no known kind"),
    (put("steps", "l", 1, "r", 1, "inputs", [0]), "operands"),
    (put("steps", "l", 0, "r", 1, "work", {"d": "nobody"}), "nobody"),
    (put("steps", "l", 0, "r", 1, "grain", 0), "grain"),
    (put("steps", "l", 0, "r", 1, "colour", "red"), "colour"),
    (put("steps", "l", 0, 5), "no known kind"),
    (put("tensors", "l", 1, 5), "tensor 1 is malformed"),
    (put("tensors", "l", 0, "r", 1, "kind", "view"), "view of tensor -1"),
    (put("tensors", "l", 0, "r", 1, "shape", [-4]), "negative"),
    (put("tensors", "l", 0, "r", 1, "shape", [0.5]), "dimension 0.5"),
    (put("tensors", "l", 1, "r", 1, "kind", "const"), "constant -1"),
    (put("tensors", "l", 2, "r", 1, "shape", [400]), "bytes"),
    (put("inputs", [-1]), "tensor -1"),
    (put("outputs", [0]), "has kind input"),
    (put("profiles", {"l": []}), "profile"),
    (put("symbols", 0, "source", "z"), "no input"),
    (put("symbols", 0, "kind", "guess"), "origin"),
    (put("symbols", []), "depends on n"),
    (put("code", [99]), "section 99"),
    (put("walker", ["key", 99]), "section 99"),
    (put("walker", 3), "makes no sense"),
    (put("checks", {"l": [3]}), "check of sizes"),
    (put("constants", [{"a": [0, "f32", [10**12]]}]), "does not fit"),
    (put("nodes", "nodes", 0, "op", "no_such_op"), "no_such_op"),
    (put("network", 3), "expected dict"),
    (put("tensors", [1]), "list"),
    (put("extra", 1), "extra"),
    (lambda meta: meta.pop("steps"), "steps"),
    (lambda meta: meta.clear(), "missing"),
])
def test_metadata_that_makes_no_sense(plan, change, reason):
    with pytest.raises(PlanError, match=reason):
        read_plan(edited(plan, change))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"null"])
def test_metadata_that_is_no_object(text):
    with pytest.raises(PlanError):
        read_plan(pack("cpu", "", text, []))


def test_what_cannot_be_written():
    p = exp_sum_program()
    p.settings["logger"] = print
    with pytest.raises(PlanError, match=r"exp_sum.*print"):
        write_plan(p)


def paths_of(x, path=()):
    yield path
    items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for k, v in items:
        yield from paths_of(v, (*path, k))


JUNK = (None, True, -1, 0, 2**63, 1e300, "", "x", "n", [], [0], {}, {"d": "n"}, {"d": "("},
        {"t": "f32"}, {"a": [0, "f32", [1]]}, {"l": []}, {"m": []}, {"r": ["Step", {}]})


@pytest.mark.parametrize("seed", range(8))
def test_junk_anywhere_in_the_metadata(plan, seed):
    """Whatever stands where: a program that makes sense, or a PlanError; nothing else."""
    header, text, sections = unpack(plan)
    original = json.loads(bytes(text))
    places = [p for p in paths_of(original) if p]
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(150):
        meta = copy.deepcopy(original)
        path = places[rng.integers(len(places))]
        put(*path, JUNK[rng.integers(len(JUNK))])(meta)
        try:
            read_plan(pack(header.target, header.device, json.dumps(meta).encode(), sections))
        except PlanError:
            refused += 1
    assert refused > 75
