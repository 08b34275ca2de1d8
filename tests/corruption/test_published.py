"""Each scheme is the published one: its statistics, and what the public code of each does, written again."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from maskattn import corruption, recipes, standards
from maskattn.corruption import ijepa as ijepa_module
from maskattn.numerics import rng
from tests.corruption.published import beit, greedy_words, ijepa, ijepa_size, spans
from tests.frameworks import maskattn_torch, torch

ERRORS = standards.value("draws.errors")


def assert_share(count, total, p):
    """`count` of `total` independent draws is what probability p gives."""
    assert abs(count - total * p) <= ERRORS * np.sqrt(total * p * (1 - p)), (count / total, p)


def assert_uniform(counts):
    """Chi-square over equally likely outcomes: within the same errors of its mean."""
    counts, expected = np.asarray(counts), np.mean(counts)
    freedom = counts.size - 1
    assert expected >= 5
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) <= ERRORS * np.sqrt(2 * freedom)


def assert_alike(one, other):
    """The means of two samples [n, ...] agree, entry by entry."""
    error = np.sqrt(one.var(axis=0) / len(one) + other.var(axis=0) / len(other))
    assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) <= ERRORS * error + standards.value("same.float64")).all()


# BERT
TOKENS = np.random.default_rng(1).integers(200, 1000, (400, 128))
SPECIAL = np.zeros(TOKENS.shape, bool)
SPECIAL[:, [0, 60, 100]] = SPECIAL[:, 120:] = True


@pytest.mark.parametrize("rate", [0.15, 0.4, 1.0])
def test_bert_selects_and_replaces_the_published_shares(rate):
    scheme = corruption.MLM(103, 1000, rate=rate)
    drawn = scheme.apply(0, TOKENS, SPECIAL)
    assert not (drawn.selected & SPECIAL).any()
    assert_share(drawn.selected.sum(), (~SPECIAL).sum(), rate)
    np.testing.assert_array_equal(drawn.labels, np.where(drawn.selected, TOKENS, -100))
    np.testing.assert_array_equal(drawn.tokens[~drawn.selected], TOKENS[~drawn.selected])
    before, after = TOKENS[drawn.selected], drawn.tokens[drawn.selected]
    assert_share((after == 103).sum(), len(after), 0.8 + 0.1 / 1000)
    assert_share(((after != before) & (after != 103)).sum(), len(after), 0.1 * (1 - 2 / 1000))
    others = after[(after != before) & (after != 103)]
    assert_uniform(np.histogram(others, 10, (0, 1000))[0])
    assert others.min() < 200 and others.max() < 1000  # the whole vocabulary, special tokens included


def test_bert_selects_independently_of_place_and_neighbour():
    selected = corruption.MLM(103, 1000).apply(1, np.zeros((20000, 16), int)).selected
    assert_uniform(selected.sum(axis=0))
    both = (selected[:, 1:] & selected[:, :-1]).sum()
    assert_share(both, selected[:, 1:].size, 0.15**2)


def test_exact_count_is_berts_number_of_predictions():
    for rate in (0.15, 0.5, 0.01):
        drawn = corruption.MLM(103, 1000, rate=rate, exact_count=True).apply(0, TOKENS, SPECIAL)
        assert set(drawn.selected.sum(axis=1)) == {max(1, round(rate * 117))}
    counts = corruption.MLM(103, 1000, exact_count=True).apply(2, np.zeros((20000, 16), int)).selected.sum(axis=0)
    assert counts.sum() == 2 * 20000 and np.ptp(counts) < 2 * ERRORS * np.sqrt(20000 / 8)


def words_of(row):
    """(start, stop) of each word of a row of `WORDS`, special tokens being words of their own."""
    breaks = (np.diff(WORDS[row]) != 0) | SPECIAL[row, 1:] | SPECIAL[row, :-1]
    edges = [0, *(np.flatnonzero(breaks) + 1), WORDS.shape[1]]
    return list(itertools.pairwise(edges))


WORDS = np.cumsum(np.random.default_rng(2).random(TOKENS.shape) < 0.6, axis=1)
WORDS[:, 50] = -1  # None in `word_ids()`
SPARED = SPECIAL | (WORDS < 0)


def test_whole_words_are_selected_whole():
    drawn = corruption.MLM(103, 1000, whole_words=True).apply(3, TOKENS, SPECIAL, WORDS)
    words = [(row, *word) for row in range(len(TOKENS)) for word in words_of(row) if not SPARED[row, word[0]]]
    parts = [drawn.selected[row, start:stop] for row, start, stop in words]
    assert all(part.all() or not part.any() for part in parts)
    assert not (drawn.selected & SPARED).any()
    assert_share(sum(part.any() for part in parts), len(parts), 0.15)
    long = np.concatenate(
        [drawn.tokens[row, a:b] == 103 for row, a, b in words if b - a > 1 and drawn.selected[row, a]]
    )
    assert_share(long.sum(), len(long), 0.8)  # each token of a word is replaced by itself


def test_exact_whole_words_are_berts_greedy_choice():
    scheme = corruption.MLM(103, 1000, whole_words=True, exact_count=True)
    drawn = scheme.apply(4, TOKENS, SPECIAL, WORDS)
    order = np.argsort(rng.bits(rng.fold_in(rng.key(4), 0), TOKENS.shape) >> 2, axis=1, kind="stable")
    for row in range(100):
        words = words_of(row)
        there = [i for i in order[row] if i < len(words) and not SPARED[row, words[i][0]]]
        chosen = greedy_words(there, [b - a for a, b in words], round(0.15 * 116))
        expected = np.zeros(TOKENS.shape[1], bool)
        for i in chosen:
            expected[slice(*words[i])] = True
        np.testing.assert_array_equal(drawn.selected[row], expected)


# T5
def test_t5_corrupts_the_published_number_of_tokens_in_that_many_spans():
    lengths = np.arange(65)
    tokens = np.tile(np.arange(1000, 1064), (65, 1))
    for rate, mean in ((0.15, 3.0), (0.5, 1.5), (0.3, 10.0)):
        drawn = corruption.T5Spans(999, rate=rate, mean_span=mean).apply(0, tokens, lengths)
        for n, hidden in zip(lengths, drawn.corrupted, strict=True):
            count = min(max(round(n * rate), 1), n - 1) if n > 1 else 0
            starts = np.flatnonzero(hidden & ~np.concatenate([[False], hidden[:-1]]))
            assert hidden.sum() == count and not hidden[n:].any()
            assert len(starts) == (max(round(count / mean), 1) if count else 0)
            if count:
                assert not hidden[0] and hidden[n - 1]


def test_t5_every_division_is_equally_likely():
    # 8 tokens, 4 corrupted, in 2 spans: 3 cuts of the corrupted times 3 of the others
    hidden = corruption.T5Spans(rate=0.5, mean_span=2).apply(0, np.zeros((9000, 8), int)).corrupted
    found = Counter(map(tuple, hidden.tolist()))
    draws = random.Random(0)
    assert set(found) == {tuple(spans(draws, 8, 0.5, 2).tolist()) for _ in range(300)} and len(found) == 9
    assert_uniform(list(found.values()))


def test_t5_spans_are_as_long_as_the_published_ones():
    hidden = corruption.T5Spans().apply(1, np.zeros((3000, 100), int)).corrupted
    draws = random.Random(1)
    assert_alike(hidden, np.array([spans(draws, 100, 0.15, 3.0) for _ in range(3000)]))
    ends = [h & ~np.concatenate([h[:, 1:], np.zeros((3000, 1), bool)], axis=1) for h in (hidden,)][0]
    assert (ends.sum(axis=1) == 5).all() and hidden.sum() == 15 * 3000


@pytest.mark.parametrize("eos", [None, 1])
def test_t5_inputs_and_targets_tell_the_text(eos):
    tokens = np.random.default_rng(5).integers(2, 900, (50, 60))
    lengths = np.random.default_rng(6).integers(2, 61, 50)
    drawn = corruption.T5Spans(999, eos_id=eos).apply(2, tokens, lengths)
    for row, n in enumerate(lengths):
        shown, asked = drawn.inputs[row, : drawn.input_lengths[row]], drawn.targets[row, : drawn.target_lengths[row]]
        assert not drawn.inputs[row, len(shown) :].any() and not drawn.targets[row, len(asked) :].any()
        if eos:
            assert shown[-1] == asked[-1] == eos
            shown, asked = shown[:-1], asked[:-1]
        sentinels = shown[shown > 900]
        np.testing.assert_array_equal(sentinels, 999 - np.arange(len(sentinels)))
        np.testing.assert_array_equal(asked[asked > 900], sentinels)
        assert asked[0] == 999
        answers = {int(part[0]): part[1:] for part in np.split(asked, np.flatnonzero(asked > 900)[1:])}
        told = np.concatenate([answers[int(t)] if t > 900 else [t] for t in shown])
        np.testing.assert_array_equal(told, tokens[row, :n])
        assert min(len(answer) for answer in answers.values()) >= 1


# MAE
def test_mae_keeps_and_restores():
    drawn = corruption.MAE(0.75, prefix=1).apply(0, 2000, 14)
    assert drawn.keep.shape == (2000, int(14 * 0.25))
    patches = np.arange(2000 * 14).reshape(2000, 14)
    kept = np.take_along_axis(patches, drawn.keep, 1)
    filled = np.concatenate([kept, np.full((2000, 14 - kept.shape[1]), -1)], axis=1)
    restored = np.take_along_axis(filled, drawn.restore, 1)
    np.testing.assert_array_equal(restored, np.where(drawn.removed, -1, patches))
    np.testing.assert_array_equal(np.sort(drawn.restore), np.tile(np.arange(14), (2000, 1)))
    np.testing.assert_array_equal(drawn.visible, np.concatenate([np.ones((2000, 1), bool), ~drawn.removed], axis=1))
    assert_uniform(np.bincount(drawn.keep[:, 0], minlength=14))
    assert_uniform(
        np.bincount(drawn.keep[:, 0] * 14 + drawn.keep[:, 1], minlength=196).reshape(14, 14)[~np.eye(14, dtype=bool)]
    )


def test_mae_on_the_full_sequence_is_mae_on_the_kept_tokens():
    drawn = corruption.MAE(0.5, prefix=1).apply(3, 2, 8)
    mask = drawn.attention_mask()
    assert mask == recipes.mae_visible(drawn.visible)
    tokens = torch.randn(2, 9, 2, 4, generator=torch.Generator().manual_seed(0))
    # in the order of the image, since sums are taken in the order of their terms
    kept = [torch.tensor([0, *(np.sort(row) + 1)]) for row in drawn.keep]
    short = torch.stack([x[places] for x, places in zip(tokens, kept, strict=True)])
    full = maskattn_torch.attention(tokens, tokens, tokens, mask, kernel="exact")
    dropped = maskattn_torch.attention(short, short, short, kernel="exact")
    assert torch.equal(torch.stack([x[places] for x, places in zip(full, kept, strict=True)]), dropped)
    assert not full[torch.tensor(~drawn.visible)].any()


# SimMIM
def test_simmim_hides_whole_units():
    scheme = corruption.SimMIM()
    removed = scheme.apply(0, 500).removed
    units = removed[:, ::8, ::8]
    assert removed.shape == (500, 48, 48) and (units.sum(axis=(1, 2)) == np.ceil(36 * 0.6)).all()
    np.testing.assert_array_equal(removed, units.repeat(8, axis=1).repeat(8, axis=2))
    counts = units.sum(axis=0)
    assert np.abs(counts - 500 * 22 / 36).max() <= ERRORS * np.sqrt(500 * (22 / 36) * (14 / 36))


# BEiT
@pytest.fixture(scope="module")
def published_beit():
    draws = random.Random(0)
    found = [beit(draws) for _ in range(1500)]
    return np.array([hidden for hidden, _ in found])


def test_beit_hides_what_the_published_algorithm_hides(published_beit):
    removed = corruption.BEiT().apply(0, 3000).removed
    count, expected = removed.sum(axis=(1, 2)), published_beit.sum(axis=(1, 2))
    assert count.max() == 75 and count.min() >= 50
    assert_alike(count, expected)
    assert_alike(count == 75, expected == 75)
    assert_alike(removed, published_beit)
    # how much of the hidden lies together: neighbours that are both hidden
    assert_alike(*((x[:, 1:] & x[:, :-1]).sum(axis=(1, 2)) for x in (removed, published_beit)))
    assert_alike(*((x[:, :, 1:] & x[:, :, :-1]).sum(axis=(1, 2)) for x in (removed, published_beit)))


def test_beits_first_block_is_within_its_bounds():
    scheme = corruption.BEiT((20, 24), patches=31, min_block=30, max_block=31, min_aspect=0.5, max_aspect=0.6)
    sides = Counter()
    for hidden in scheme.apply(1, 300).removed:
        rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
        if hidden.sum() == len(rows) * len(columns):
            sides[len(rows), len(columns)] += 1
    assert set(sides) <= {(h, w) for h in (4,) for w in (7, 8)} and sum(sides.values()) > 100


# I-JEPA
GRID = (14, 14)


def test_ijepas_blocks_have_the_published_sizes():
    for scale, aspect in (((0.15, 0.2), (0.75, 1.5)), ((0.85, 1.0), (1.0, 1.0))):
        starts, sides = ijepa_module._sizes(GRID, scale, aspect)
        for u in [*starts, *(starts[1:] - 1), 2**16 - 1]:
            found = sides[np.searchsorted(starts, u, side="right") - 1]
            assert tuple(found) == ijepa_size(u / 2**16, GRID, scale, aspect)


def test_ijepa_is_the_published_algorithm():
    drawn = corruption.IJEPA().apply(0, 3000)
    boxes = drawn.targets.reshape(-1, 14, 14)
    heights, widths = boxes.any(axis=2).sum(axis=1), boxes.any(axis=1).sum(axis=1)
    assert len(set(heights)) == len(set(widths)) == 1 and (boxes.sum(axis=(1, 2)) == heights * widths).all()
    u = (rng.bits(rng.fold_in(rng.key(0), 0), (2,)) >> 16) / 2**16
    target = ijepa_size(u[0], GRID, (0.15, 0.2), (0.75, 1.5))
    context = ijepa_size(u[1], GRID, (0.85, 1.0), (1.0, 1.0))
    assert (heights[0], widths[0]) == target
    assert not (drawn.context[:, None] & drawn.targets).any()
    assert (drawn.context.sum(axis=(1, 2)) > 10).all()
    draws = random.Random(2)
    expected = [ijepa(draws, (target, context), GRID, 4, 10) for _ in range(1500)]
    assert_alike(drawn.targets.any(axis=1), np.array([targets.any(axis=0) for targets, _, _ in expected]))
    assert_alike(drawn.context, np.array([found for _, found, _ in expected]))
    assert_alike(drawn.context.sum(axis=(1, 2)), np.array([found.sum() for _, found, _ in expected]))


def test_ijepa_gives_targets_up_one_by_one_where_no_context_is_left():
    scheme = corruption.IJEPA((8, 8), 4, (0.25, 0.3), (0.6, 0.7), min_keep=14)
    drawn = scheme.apply(1, 400)
    taken_out = (~(drawn.context[:, None] & drawn.targets).any(axis=(2, 3))).sum(axis=1)
    assert set(taken_out) == {1, 2, 3, 4} and (drawn.context.sum(axis=(1, 2)) > 14).all()
    u = (rng.bits(rng.fold_in(rng.key(1), 0), (2,)) >> 16) / 2**16
    sizes = [ijepa_size(u[0], (8, 8), (0.25, 0.3), (0.75, 1.5)), ijepa_size(u[1], (8, 8), (0.6, 0.7), (1.0, 1.0))]
    draws = random.Random(3)
    expected = [ijepa(draws, sizes, (8, 8), 4, 14) for _ in range(400)]
    assert max(tries for _, _, tries in expected) >= 20
    assert_alike(drawn.context.sum(axis=(1, 2)), np.array([found.sum() for _, found, _ in expected]))
    overlap = np.array([(found & targets.any(axis=0)).sum() for targets, found, _ in expected])
    assert_alike((drawn.context & drawn.targets.any(axis=1)).sum(axis=(1, 2)), overlap)
    free = corruption.IJEPA(allow_overlap=True).apply(0, 50)
    assert (free.context[:, None] & free.targets).any()
    assert len(set(free.context.sum(axis=(1, 2)))) == 1


def test_ijepas_indices_are_its_blocks():
    drawn = corruption.IJEPA().apply(7, 20)
    for grid, ids, count in (
        (drawn.context, drawn.context_ids, drawn.context_count),
        (drawn.targets, drawn.target_ids, drawn.target_count),
    ):
        flat = grid.reshape(*grid.shape[:-2], -1)
        for at in np.ndindex(*flat.shape[:-1]):
            np.testing.assert_array_equal(ids[at][: count[at]], np.flatnonzero(flat[at]))
            assert not ids[at][count[at] :].any()
        assert count.max() <= ids.shape[-1]
