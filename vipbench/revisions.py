"""The revisions of what vipbench itself computes. Each is part of the keys of the cells that it
concerns, and of the feature cache's keys: raise it when the numbers change."""

from __future__ import annotations

# Initial values, batch orders, training, scoring.
ENGINE_REVISION = 2
# The pixels of a file.
READER_REVISION = 2
# The features of an image, from the same pixels.
FEATURE_REVISION = 3
# The features of a text.
TEXT_REVISION = 1
# The draw of a training view.
VIEW_REVISION = 2
# The draw of a support set.
SAMPLER_REVISION = 2
# The order in which transductive methods see the test images.
TEST_ORDER_REVISION = 1

# Part of a cell's key -> its present value.
PRESENT = {
    "engine.revision": ENGINE_REVISION,
    "reader.revision": READER_REVISION,
    "features.revision": FEATURE_REVISION,
    "text.revision": TEXT_REVISION,
    "views.revision": VIEW_REVISION,
    "sampler.revision": SAMPLER_REVISION,
    "test_order.revision": TEST_ORDER_REVISION,
}
