"""Ranks in real transformers: spectra of the attention products of any PyTorch model."""

import dynalyze._core.pytorch  # noqa: F401  (says what to install where torch is missing)
from dynalyze.plots.spectra import plot_final_spectrum
from dynalyze.spectra.attention import AttentionProducts, attention_products
from dynalyze.spectra.callbacks import lightning_callback, trainer_callback
from dynalyze.spectra.checkpoints import track_checkpoints
from dynalyze.spectra.detection import DetectedStages, detect_stages
from dynalyze.spectra.history import SpectraHistory
from dynalyze.spectra.layouts import AttentionLayout, WeightSlice
from dynalyze.spectra.lora import LoraRanks, suggest_lora_ranks
from dynalyze.spectra.tracker import Tracker, track

__all__ = [
    "AttentionLayout",
    "AttentionProducts",
    "DetectedStages",
    "LoraRanks",
    "SpectraHistory",
    "Tracker",
    "WeightSlice",
    "attention_products",
    "detect_stages",
    "lightning_callback",
    "plot_final_spectrum",
    "suggest_lora_ranks",
    "track",
    "track_checkpoints",
    "trainer_callback",
]
