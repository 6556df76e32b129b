"""Trains models whose weights are rounded as they will be stored: one method, one file, one paper.

``aware`` learns weights and step sizes within one format (quantisation-aware training), ``adapt`` changes word lengths
while it trains. Both put their rounding into a model that the user's own loop goes on training, and end with a
:class:`isoloss.compress.Compressed` of exactly what the forward pass computed with.
"""
