"""Bad input of the masks that are patterns: what is made, the error, and what its message says."""

from __future__ import annotations

import numpy as np

from maskattn import masks

BAD = [
    (lambda: masks.BlockCausal(0), ValueError, r"BlockCausal: size must be at least 1, got 0"),
    (lambda: masks.BlockCausal(2.0), TypeError, r"size must be an int, got 2\.0 \(float\)"),
    (lambda: masks.Chunked(-3), ValueError, r"Chunked: size must be at least 1, got -3"),
    (lambda: masks.Chunked(None), TypeError, r"size must be an int, got None"),
    (
        lambda: masks.Dilated(-1, 0),
        ValueError,
        r"window must be at least 0, got -1\n.*dilation must be at least 1, got 0",
    ),
    (lambda: masks.Dilated(1, "2"), TypeError, r"dilation must be an int, got '2'"),
    (lambda: masks.Strided(0), ValueError, r"stride must be at least 1, got 0"),
    (lambda: masks.Strided(True), TypeError, r"stride must be an int, got True"),
    (lambda: masks.Global([1, 0]), TypeError, r"tokens must be a bool array, got dtype int64"),
    (lambda: masks.Global(True), ValueError, r"tokens must have shape \[S\] or \[B, S\], got \[\]"),
    (
        lambda: masks.RandomBlocks(-1, 0, -1, 0),
        ValueError,
        r"seed .* got -1\n.*block_size .*\n.*blocks_per_row .*\n.*kv_bl",
    ),
    (lambda: masks.RandomBlocks(2**31, 2, 1, 4), ValueError, r"seed must be less than 2\*\*31, got 2147483648"),
    (lambda: masks.RandomBlocks(0, 2, 5, 4), ValueError, r"blocks_per_row must be at most kv_blocks 4, got 5"),
    (lambda: masks.RandomBlocks(0, 2, 1.0, 4), TypeError, r"blocks_per_row must be an int, got 1\.0"),
    (lambda: masks.Neighborhood((6, 6), (3, 7)), ValueError, r"kernel \* dilation must fit in grid \(6, 6\) on every"),
    (lambda: masks.Neighborhood((6, 6), 3, 3), ValueError, r"must fit in grid .* got \(3, 3\) and \(3, 3\)"),
    (lambda: masks.Neighborhood((2, 2, 2, 2), 1), ValueError, r"grid must have 1 to 3 axes, got \(2, 2, 2, 2\)"),
    (
        lambda: masks.Neighborhood((6, 6), (3, 3, 3), 0),
        ValueError,
        r"kernel must have 2 entries, got 3\n.*dilation must be",
    ),
    (lambda: masks.Neighborhood("66", 3), TypeError, r"grid must be a tuple of ints, got '66'"),
    (lambda: masks.Axial((), 0), ValueError, r"grid must have 1 to 3 axes, got \(\)"),
    (lambda: masks.Axial((3, 4), 2), ValueError, r"axis must be one of the 2 of grid, got 2"),
    (lambda: masks.Axial((3, 0), 1.5), TypeError, r"grid\[1\] must be at least 1, got 0\n.*axis must be an int"),
    (lambda: masks.BlockSparse([[1, 0]], 2), TypeError, r"layout must be a bool array, got dtype int64"),
    (
        lambda: masks.BlockSparse([True], 2),
        ValueError,
        r"layout must have shape \[QB, KB\] or \[H, QB, KB\], got \[1\]",
    ),
    (lambda: masks.BlockSparse([[True]], 0), ValueError, r"block_size must be at least 1, got 0"),
    (lambda: masks.BlockSparse([[True]], (2, 2, 2)), ValueError, r"block_size must have 2 entries, got 3"),
    (lambda: masks.Tree([1, 0]), ValueError, r"parents must have no cycle, got one that node 0 leads to"),
    (lambda: masks.Tree([-1, 1]), ValueError, r"no cycle, got one that node 1 leads to"),
    (lambda: masks.Tree([-1, 2]), ValueError, r"parents must be -1 or one of 2 nodes, got -1 to 2"),
    (lambda: masks.Tree([[-1, -2]]), ValueError, r"parents must be -1 or one of 2 nodes, got -2 to -1"),
    (lambda: masks.Tree([-1.0]), TypeError, r"parents must be an int array, got dtype float64"),
    (lambda: masks.Tree(np.zeros((1, 1, 1), int)), ValueError, r"parents must have shape \[N\] or \[B, N\]"),
    (lambda: masks.PerHead([]), ValueError, r"parts must have one mask per head, got \[\]"),
    (lambda: masks.PerHead([masks.Causal(), True]), TypeError, r"parts\[1\] must be a mask, got True"),
    (lambda: masks.PerHead(masks.Causal()), TypeError, r"parts must be a list of masks, got Causal\(\)"),
]
