"""Tests of layers and built-in plugins, with engines for CUDA that are interpreted."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="the CUDA target compiles with Triton")
pytest.importorskip("torch")

import plugin_kit
import test_broadcast as broadcast
import test_builtin_bert_plugins as bert
import test_builtin_model_plugins as models
import test_output_formulas as formulas
import test_packed_sequences as packed

import tactician as trt

KINDS = trt.CausalMaskKind


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Engines are built for a GPU; a test that would get one for the CPU fails."""
    monkeypatch.setenv("TACTICIAN_GPU", "interpreter")
    monkeypatch.setenv("TACTICIAN_DEVICE", "gpu")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # constants would be rounded to TF32
    seen = []
    real = trt.Builder._run_compiler

    def compiled(self, network, config):
        program, report = real(self, network, config)
        seen.append(program.target)
        return program, report

    monkeypatch.setattr(trt.Builder, "_run_compiler", compiled)
    yield
    assert set(seen) == {"cuda"}


@pytest.mark.parametrize("forms", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("kind", [KINDS.NONE, KINDS.LOWER_RIGHT])
def test_attention_of_packed_sequences(forms, kind):
    packed.test_attention(forms, kind, True)


def test_masks_and_other_sequences():
    packed.test_masks_are_by_places_within_sequences((3, packed.HEADS, 4, 5), False)
    packed.test_one_engine_takes_other_sequences()


def test_packed_updates_of_caches():
    packed.test_caches_take_packed_updates(True)


@pytest.mark.parametrize("test", [
    lambda: bert.test_attention(True, "4"), bert.test_attention_of_packed_sequences,
    lambda: bert.test_attention_of_8_bits("6"), bert.test_embeddings_of_megatron,
    lambda: bert.test_normalized_sums_of_8_bits("8", np.int8),
    lambda: bert.test_normalized_sums(False, np.float16),
    lambda: models.test_tensorflows_combined_suppression("EfficientNMS_Implicit_TF_TRT", 3, 1),
    models.test_crops, models.test_tiles_and_coordinates,
])  # fmt: skip
def test_plugins(test):
    assert plugin_kit.run is bert.run
    test()


def test_formulas_of_sizes():
    formulas.test_convolution((1, 0), (2, 1))
    formulas.test_deconvolution((0, 3))
    formulas.test_pooling_rounded_up(True, False)


def test_one_copy_for_the_batch():
    broadcast.test_one_copy_serves_every_batch(True, 3)
    broadcast.test_plugins_are_asked(True, True, False)
