"""The published algorithms, one row at a time, with Python's own random numbers: what the schemes are compared with."""

import math

import numpy as np


def greedy_words(order, sizes, most):
    """BERT's whole words: in this order, each that does not make the tokens too many."""
    chosen, total = [], 0
    for word in order:
        if total + sizes[word] <= most:
            chosen.append(word)
            total += sizes[word]
    return chosen


def spans(random, tokens, rate, mean_span):
    """T5: the corrupted tokens, bool [tokens]: both kinds cut into as many spans, which alternate."""
    corrupted = min(max(round(tokens * rate), 1), tokens - 1)
    count = max(round(corrupted / mean_span), 1)

    def cut(items):
        cuts = sorted(random.sample(range(1, items), count - 1))
        return np.diff([0, *cuts, items])

    parts = zip(cut(tokens - corrupted), cut(corrupted), strict=True)
    return np.concatenate([[False] * left + [True] * gone for left, gone in parts])


def beit(random, grid=(14, 14), patches=75, least=16, low=0.3):
    """BEiT: blocks until there are enough, or ten in a row do not fit; and how many blocks there are."""
    hidden, blocks = np.zeros(grid, bool), 0
    while hidden.sum() < patches:
        still = patches - hidden.sum()
        for _ in range(10):
            area = random.uniform(least, still)
            aspect = math.exp(random.uniform(math.log(low), -math.log(low)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height < grid[0] and width < grid[1]:
                top, left = random.randint(0, grid[0] - height), random.randint(0, grid[1] - width)
                block = np.zeros(grid, bool)
                block[top : top + height, left : left + width] = True
                if 0 < (block & ~hidden).sum() <= still:
                    hidden |= block
                    blocks += 1
                    break
        else:
            break
    return hidden, blocks


def ijepa_size(u, grid, scale, aspect):
    """I-JEPA: the sides of a block from one number in [0, 1)."""
    area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(height, grid[0] - 1), min(width, grid[1] - 1)


def ijepa(random, sizes, grid, targets, min_keep):
    """I-JEPA: targets and context of an image, given the sizes of both kinds of block, and the tries it took."""

    def block(size):
        top, left = random.randrange(grid[0] - size[0]), random.randrange(grid[1] - size[1])
        found = np.zeros(grid, bool)
        found[top : top + size[0], left : left + size[1]] = True
        return found

    predicted, tries = [block(sizes[0]) for _ in range(targets)], 0
    while True:
        context = block(sizes[1])
        for target in predicted[: max(targets - tries // 20, 0)]:
            context &= ~target
        if context.sum() > min_keep:
            return np.array(predicted), context, tries
        tries += 1
