import numpy as np

from cnn_research.analysis.overlays import COLOURS, OPACITY, TINT, instance_overlay, overlay, segmentation_grid


def test_an_overlay_blends_the_colours_of_classes():
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    classes = np.array([[0, 1, 2, 3], [19, 20, 255, -1], [4, 5, 6, 7]])
    found = overlay(image, classes)
    assert (found[1, 2:] == image[1, 2:]).all()
    grey = (image @ [0.299, 0.587, 0.114])[..., None]
    expected = (1 - OPACITY) * grey + OPACITY * COLOURS[classes % 20]
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], atol=0.51)
    np.testing.assert_allclose(found[1, 1], expected[1, 1], atol=0.51)
    assert overlay(image[..., :1], classes).shape == (3, 4, 3)
    assert len(np.unique(COLOURS, axis=0)) == 20


def test_a_grid_has_a_legend_of_what_is_seen():
    images = [np.zeros((6, 8, 3), np.uint8), np.zeros((10, 8, 1), np.uint8), np.zeros((4, 4, 3), np.uint8)]
    predicted = [np.full(image.shape[:2], index) for index, image in enumerate(images)]
    truths = [np.full((6, 8), 3), None, np.full((4, 4), 255)]
    figure = segmentation_grid(images, predicted, truths, ("sky", "tree", "road", "car", "fence"), columns=2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "tree", "road", "car"]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), overlay(images[0], predicted[0]))
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), overlay(images[0], truths[0]))


def test_objects_are_tinted_and_outlined_the_first_ones_on_top():
    image = np.random.default_rng(0).integers(0, 256, (9, 10, 3), np.uint8)
    masks = np.zeros((2, 9, 10), bool)
    masks[0, 1:6, 1:6] = masks[1, 4:8, 4:9] = True
    found = instance_overlay(image, masks)
    nowhere = ~masks.any(axis=0)
    np.testing.assert_array_equal(found[nowhere], image[nowhere])
    np.testing.assert_array_equal(found[1, 1:6], np.tile(COLOURS[0], (5, 1)))
    np.testing.assert_array_equal(found[7, 4:9], np.tile(COLOURS[1], (5, 1)))
    np.testing.assert_allclose(found[3, 3], (1 - TINT) * image[3, 3] + TINT * COLOURS[0], atol=0.51)
    np.testing.assert_array_equal(found[5, 5], COLOURS[0])
    assert instance_overlay(image[..., :1], masks).shape == (9, 10, 3)
