"""The workshop: trainers that a study can name by an entry point such as ``isoloss.trainers.gpt:train``.

A trainer is a generator of ``(step, measurements)``. Nothing here is imported by the rest of the package.
"""
