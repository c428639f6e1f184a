"""Random affine changes of training images, a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from training.datasets import Split


@dataclass(frozen=True)
class Augmentation:
    """How far an image may be changed, each amount drawn uniformly for each image.

    Attributes:
        shift: pixels, along each axis.
        rotate: degrees, to either side.
        zoom: relative change of size: 0.1 is 90 % to 110 %.
        shear: relative sideways slant.
        flip: whether every other image is mirrored left to right.
        fill: what comes in at the edges: ``constant`` (0) or ``reflect``.
    """

    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    flip: bool = False
    fill: str = "constant"

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Change uint8 (batch, height, width, channels); the same shape and dtype come back."""
        count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]

        def uniform(amount: float) -> tf.Tensor:
            return tf.random.uniform((count,), -amount, amount)

        angle = uniform(np.deg2rad(self.rotate))
        scale = 1.0 + uniform(self.zoom)
        mirror = tf.where(tf.random.uniform((count,)) < 0.5, -1.0, 1.0) if self.flip else tf.ones((count,))
        cos, sin, shear = tf.cos(angle) / scale, tf.sin(angle) / scale, uniform(self.shear)
        # The operator maps output to input positions; rotation and size are about the image's centre.
        a, b = cos * mirror, -sin + shear
        c, d = sin * mirror, cos
        x, y = (width - 1) / 2, (height - 1) / 2
        dx = x - (a * x + b * y) + tf.round(uniform(self.shift))
        dy = y - (c * x + d * y) + tf.round(uniform(self.shift))
        zero = tf.zeros((count,))
        changed = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(images, tf.float32),
            transforms=tf.stack([a, b, dx, c, d, dy, zero, zero], axis=1),
            output_shape=[height, width],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode=self.fill.upper(),
        )
        return tf.cast(tf.clip_by_value(tf.round(changed), 0, 255), tf.uint8)


def batches(split: Split, batch_size: int, *, seed: int, augmentation: Augmentation | None = None) -> tf.data.Dataset:
    """Batches of a split's images and labels; with an augmentation shuffled and changed anew each epoch."""
    data = tf.data.Dataset.from_tensor_slices((split.x, split.y))
    if augmentation is None:
        return data.batch(batch_size)

    def change(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if images.shape.rank == 3:  # grey
            return augmentation(images[..., None])[..., 0], labels
        return augmentation(images), labels

    return data.shuffle(len(split), seed=seed).batch(batch_size).map(change, num_parallel_calls=2).prefetch(4)
