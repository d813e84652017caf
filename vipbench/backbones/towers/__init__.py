"""The forward passes of image and text towers."""
