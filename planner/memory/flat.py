"""Flat buffers: an order and offsets of tensors in one buffer that ranks cut into equal shards.

A tensor is contiguous and made of blocks (rows of a quantisation scheme, say) that no cut may go
through; padding may only lie between tensors.

      |aaaaaaaaaaaa bb|bbbbbb ccccccc |  three tensors on two ranks, blocks of 3, 2 and 7
                   ^ cut between blocks

Where a tensor's first block starts decides which cuts it may cross: after a cut it crosses at
distance d from its start, d must be a multiple of its block.
"""
