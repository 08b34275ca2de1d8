"""The blockwise kernel on a GPU: one Pallas kernel a pass, lowered by Triton, for any mask and bias of the library.

    states.py     which tiles are empty or full      operands.py   masks' data, read inside a kernel
    lists.py      what each program walks            sides.py      loads and stores of rows
    loops.py      the walk                           pairs.py      the scores of one tile
    formulas.py   which masks can be in a kernel     call.py       the calls
    forward.py, backward.py, bias.py                 the kernels

Empty tiles are never visited, and in full ones the mask is not asked. A tile's formulas are traced from the mask
itself. Nothing is made of L x S entries. Not run on a GPU yet, but for a prototype: interpreted on a CPU, and compiled
for 9.0.
"""
