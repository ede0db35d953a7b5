"""Data: where examples come from, the order they are seen in, and how they become batches.

A batch is a dict of arrays under TFDS's feature names (`image` uint8[batch, height, width, channels]; `label`
int32[batch]; or `segmentation_mask` uint8[batch, height, width, 1], where 255 means ignore; or `objects/bbox`
float32[batch, max_objects, 4], ymin, xmin, ymax, xmax in 0..1, `objects/label` and `objects/valid`, the largest first)
with `example_mask` bool[batch], False where the last batch of a split is padded, and `original_size` int32[batch, 2],
the height and width of each image before it was resized.
"""
