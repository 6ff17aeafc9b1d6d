"""Container images, each from one Dockerfile, built with or without a Docker engine.

The Dockerfile is the only recipe: a Docker engine reads it where there is one, and ``builder`` interprets
the same file with debootstrap and chroot where there is none. So the two ways cannot drift apart.
"""
