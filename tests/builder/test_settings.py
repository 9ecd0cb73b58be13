from tactician.builder.settings import ProfileSettings
from tactician.ir.graph import SymbolInfo


def test_dim_ranges_follow_the_symbols():
    profile = ProfileSettings(
        shapes={"x": ((1, 3), (4, 3), (8, 3))}, values={"s": ((2,), (5,), (9,))}
    )
    symbols = {
        "x.0": SymbolInfo("x.0", "dim", "x", 0),
        "s@0": SymbolInfo("s@0", "value", "s", 0),
        "y.0": SymbolInfo("y.0", "dim", "y", 0),
        "%7.0": SymbolInfo("%7.0", "data", "7", 0),
    }
    assert profile.dim_ranges(symbols) == {"x.0": (1, 4, 8), "s@0": (2, 5, 9)}
