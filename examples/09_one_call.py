"""All of it in two lines, for those who have no TensorRT program to bring along."""

from __future__ import annotations

import digits

import tactician


def main() -> None:
    images, labels = digits.load(12)
    engine = tactician.build(digits.MODEL)
    out = engine({"image": images})
    digits.check(out["probabilities"], labels)


if __name__ == "__main__":
    main()
