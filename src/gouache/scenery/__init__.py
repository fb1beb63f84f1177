"""Sceneries for things to stand in, drawn by code: a snowy field, a beach, a starry sky (layer 1).

A small model knows things and no landscapes. So a thing that is said to be "in the snow" is drafted by itself and laid
on a scenery from here (`gouache.pipeline.generate.draft`). Shapes are few, flat and large: an autoencoder that makes
one latent of 8 by 8 pixels keeps no speck under four pixels. Where flakes, stars and leaves are comes from the
picture's seed.
"""
