"""for_hf from dictionaries, as config.json holds them; tests/twins/test_hugging_face_torch.py asks the models."""

import numpy as np
import pytest

from maskattn import masks
from maskattn.masks import Causal, Chunked, Full, SlidingWindow, for_hf
from maskattn.masks.interop.hugging_face_models import _ROWS


def window(width):
    return Causal() & SlidingWindow(width - 1, None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama", "num_hidden_layers": 2}, [Causal()] * 2),
        ({"model_type": "llama", "is_causal": False}, [Full()]),
        ({"model_type": "mistral", "sliding_window": 4}, [window(4)] * 2),
        ({"model_type": "mistral", "sliding_window": None}, [Causal()] * 2),
        ({"model_type": "mistral", "sliding_window": 4, "is_causal": False}, [SlidingWindow(4, 4)]),
        ({"model_type": "gemma2", "sliding_window": 4}, [window(4), Causal(), window(4)]),
        ({"model_type": "gemma3_text", "sliding_window": 4}, [window(4)] * 5 + [Causal(), window(4)]),
        ({"model_type": "gemma3_text", "sliding_window": 4, "sliding_window_pattern": 2}, [window(4), Causal()]),
        (
            {"model_type": "gemma3_text", "sliding_window": 6, "use_bidirectional_attention": True},
            [SlidingWindow(3, 3)],
        ),
        (
            {"model_type": "ministral", "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
            [Causal(), window(4)],
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            [Causal(), window(4)],
        ),
        ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4}, [Causal()]),
        (
            {"model_type": "qwen2_moe", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
            [window(4), Causal(), window(4), Causal(), Causal()],
        ),
        (
            {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 4},
            [Causal()] * 3 + [window(4)],
        ),
        ({"model_type": "llama4_text", "attention_chunk_size": 8}, [Causal() & Chunked(8)] * 3 + [Causal()]),
        (
            {"model_type": "modernbert", "local_attention": 128},
            [Full(), SlidingWindow(64, 64), SlidingWindow(64, 64), Full()],
        ),
        ({"model_type": "longformer", "attention_window": [4, 8]}, [SlidingWindow(2, 2), SlidingWindow(4, 4)]),
        ({"model_type": "gpt_neo", "window_size": 4, "attention_layers": ["global", "local"]}, [Causal(), window(4)]),
        ({"model_type": "bert", "is_decoder": True}, [Causal()]),
        ({"model_type": "clip_text_model"}, [Causal()]),
    ],
)
def test_the_mask_of_each_layer(config, expected):
    assert [for_hf(config, layer) for layer in range(len(expected))] == expected


def test_the_parts_of_encoders_and_decoders():
    t5, led = (
        {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 3},
        {"model_type": "led", "attention_window": 8},
    )
    assert [for_hf(t5, 0, part) for part in ("encoder", "decoder", "cross")] == [Full(), Causal(), Full()]
    assert for_hf(led, 0, "encoder") == SlidingWindow(4, 4)
    assert for_hf({"model_type": "longt5", "local_radius": 3}, 0, "encoder") == SlidingWindow(3, 3)
    assert for_hf(t5, 2, "decoder") == Causal()


def test_bigbird_without_training():
    config = {"model_type": "big_bird", "attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 0}
    assert for_hf(config, 0, length=10) == Full()  # (5 + 2 * 0) * 2: what transformers takes for short
    block = np.arange(12) // 2
    q, k = block[:, None], block
    expected = (abs(q - k) <= 1) | (q == 0) | (q == 5) | (k == 0) | (k == 5)
    np.testing.assert_array_equal(for_hf(config, 0, length=12).dense(12, 12)[0, 0], expected)
    assert for_hf(config | {"attention_type": "original_full"}, 0) == Full()
    with pytest.raises(ValueError, match="pass length"):
        for_hf(config, 0)


def test_swin_counts_layers_over_stages():
    config = {"model_type": "swin", "image_size": 32, "patch_size": 2, "depths": [2, 2, 2], "window_size": 4}
    found = [for_hf(config, layer) for layer in range(6)]
    shifted = [masks.ShiftedWindow((16, 16), 4, 2), masks.ShiftedWindow((8, 8), 4, 2)]
    assert found == [Full(), shifted[0], Full(), shifted[1], Full(), Full()]  # the last grid is one window


@pytest.mark.parametrize(
    ("config", "layer", "options", "error", "message"),
    [
        (
            {"model_type": "lama"},
            0,
            {},
            ValueError,
            "no mask is known for models of type 'lama': the nearest are llama",
        ),
        ({"model_type": "zzz"}, 0, {}, ValueError, "there are"),
        ({}, 0, {}, TypeError, "with a model_type"),
        (None, 0, {}, TypeError, "got NoneType"),
        ({"model_type": "llama"}, 1.0, {}, TypeError, "layer must be an int"),
        ({"model_type": "llama"}, -1, {}, ValueError, "layer must be at least 0"),
        (
            {"model_type": "llama", "num_hidden_layers": 2},
            2,
            {},
            ValueError,
            "less than the number of layers, 2, got 2",
        ),
        ({"model_type": "llama"}, 0, {"part": "encoder"}, ValueError, "part must be None"),
        ({"model_type": "t5"}, 0, {}, ValueError, "part must be one of encoder, decoder, cross, got None"),
        ({"model_type": "gemma2", "sliding_window": "4"}, 0, {}, ValueError, "config.sliding_window must be an int"),
        ({"model_type": "gemma2", "layer_types": ["linear_attention"]}, 0, {}, ValueError, "no attention but"),
        ({"model_type": "gemma2", "layer_types": []}, 0, {}, ValueError, "less than the length of layer_types, 0"),
        (
            {"model_type": "clip", "text_config": {"model_type": "clip_text_model"}},
            0,
            {},
            ValueError,
            "made of several models: pass config.text_config",
        ),
        (
            {"model_type": "longt5", "local_radius": 3, "encoder_attention_type": "transient-global"},
            0,
            {"part": "encoder"},
            ValueError,
            "sums of blocks of tokens",
        ),
    ],
)
def test_what_it_cannot_say_is_refused(config, layer, options, error, message):
    with pytest.raises(error, match=message):
        for_hf(config, layer, **options)


def test_rows_say_what_is_read():
    known = {"mask", "window", "usual", "band", "radius", "chunk", "layer_types", "first", "when", "local", "causal_if"}
    for kind, row in _ROWS.items():
        if "like" in row:
            assert set(row) == {"like"} and row["like"] in _ROWS, kind
            continue
        for part in [row] if "mask" in row else row.values():
            assert set(part) <= known | {"unless", "why"} and part["mask"] in (
                "causal",
                "everything",
                "bigbird",
                "swin",
            ), kind
