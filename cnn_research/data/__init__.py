"""Data: where examples come from, the order they are seen in, and how they become batches.

A batch is a dict of arrays under TFDS's feature names (`image` uint8[batch, height, width, channels]; `label`
int32[batch], or `segmentation_mask` uint8[batch, height, width, 1], where 255 means ignore) with `example_mask`
bool[batch], False where the last batch of a split is padded, and `original_size` int32[batch, 2], the height and width
of each image before it was resized.
"""
