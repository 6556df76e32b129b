"""What each operator of torch costs in floating-point operations: the formulas behind :mod:`isoloss.measure.flops`.

Counted are operators made of products that are summed: matrix products, convolutions, attention, recurrent layers.
One multiply-add is 2 FLOPs. Elementwise operators, reductions, normalisations, softmax, losses, lookups and copies
cost a few operations per element; by the usual convention they count 0, and they are named in :data:`FREE`. What is
neither is unknown, and reported by name.

Torch's own table (``torch.utils.flop_counter``) is used where it is right. It has no fused attention on a CPU, no
recurrent layers, no transformer fast path, no grouped matrix products, and counts the weight gradient of a grouped
convolution once per group too often (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["FORMULAS", "FREE", "Work", "is_free", "work_of"]


class Work(NamedTuple):
    """FLOPs of one call of one operator.

    Attributes:
        flops: as the operator is executed, attention over the full square.
        masked: of them in attention scores that a causal mask throws away; a kernel may skip them.
        again: of them spent to compute once more what the forward pass did not keep.
    """

    flops: int
    masked: int = 0
    again: int = 0


Formula = Callable[[Mapping[str, Any], Any], Work | None]
"""(arguments by the names of the operator's schema, its result) -> Work; None where it does not apply."""


def _sizes(tensor: Tensor) -> list[tuple[int, ...]]:
    """The shapes in a tensor: one, or those of its parts where it is nested."""
    if tensor.is_nested:
        return [tuple(row) for row in tensor._nested_tensor_size().tolist()]
    return [tuple(tensor.shape)]


def _product(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """FLOPs of the (batched) matrix product of two shapes."""
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)


def _matrix(first: str, second: str) -> Formula:
    """A matrix product of two arguments, nested or not; of a sparse one the stored entries count."""

    def formula(given: Mapping[str, Any], out: Any) -> Work | None:
        if any(given[name].layout not in (torch.strided, torch.jagged) for name in (first, second)):
            return _sparse(given[first], given[second])
        a, b = _sizes(given[first]), _sizes(given[second])
        b = b * len(a) if len(b) == 1 else b
        return Work(sum(_product(left, right) for left, right in zip(a, b, strict=True)))

    return formula


def _linear(times: int, first: str) -> Formula:
    """A linear layer on a nested tensor; any other is seen as the matrix product it is made of."""

    def formula(given: Mapping[str, Any], out: Any) -> Work:
        used = sum(given.get("output_mask", (True,))[:2]) if times > 1 else 1
        return Work(2 * used * sum(prod(size) for size in _sizes(given[first])) * given["weight"].shape[0])

    return formula


def _grouped(given: Mapping[str, Any], out: Any) -> Work:
    """Matrix products of consecutive groups of rows or columns with a matrix each."""
    a, b = given["self"], given["mat2"]
    if a.ndim == 3 and b.ndim == 2:  # groups of columns of b
        return Work(2 * prod(a.shape[1:]) * b.shape[1])
    return Work(2 * a.numel() * b.shape[-1])


def _sparse(a: Tensor, b: Tensor) -> Work | None:
    if a.layout != torch.strided and b.layout != torch.strided:
        return None
    sparse, dense = (a, b.shape[-1]) if a.layout != torch.strided else (b, a.shape[0])
    return Work(2 * sparse._nnz() * (dense if min(a.ndim, b.ndim) > 1 else 1))


def _outer(given: Mapping[str, Any], out: Any) -> Work:
    return Work(2 * given["vec1"].numel() * given["vec2"].numel())


def _packed_linear(given: Mapping[str, Any], out: Tensor) -> Work:
    """A quantised linear layer, whose weights are in a packed object."""
    return Work(2 * given["X"].numel() * out.shape[-1])


def _few_bits(given: Mapping[str, Any], out: Tensor) -> Work:
    """Weights stored in some packed order: the shape of the result tells."""
    x = next(given[name] for name in ("self", "inp") if name in given)
    return Work(2 * x.numel() * out.shape[-1])


def _convolution_flops(
    x: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...], turned: bool
) -> int:
    # Each position of the output (of the input, if transposed) meets every weight once; that holds for groups too,
    # because a grouped convolution's weight has only the channels of its group. Padding counts as executed.
    places = (x if turned else out)[2:]
    return 2 * x[0] * prod(places) * prod(weight)


def _convolution(given: Mapping[str, Any], out: Tensor) -> Work:
    x = given["input"].shape
    return Work(_convolution_flops(x, given["weight"].shape, out.shape, given["transposed"]))


def _convolution_backward(given: Mapping[str, Any], out: Any) -> Work:
    # The gradients of the input and of the weight each make the products of the forward pass once more.
    once = _convolution_flops(
        given["input"].shape, given["weight"].shape, given["grad_output"].shape, given["transposed"]
    )
    return Work(once * sum(given["output_mask"][:2]))


def _dropped(queries: int, keys: int) -> float:
    """Share of the scores above the diagonal, which a causal mask throws away."""
    kept = sum(min(i + 1, keys) for i in range(queries))
    return 1 - kept / (queries * keys)


def _squares(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int]:
    """FLOPs of queries times keys, and of weights times values. With fewer heads of keys (GQA) they are repeated."""
    batch, heads, length, size = query.shape
    return 2 * batch * heads * length * key.shape[2] * size, 2 * batch * heads * length * key.shape[
        2
    ] * value.shape[3]


def _attention(given: Mapping[str, Any], out: Any) -> Work:
    query, key = given["query"], given["key"]
    flops = sum(_squares(query, key, given["value"]))
    causal = given.get("is_causal") and query.shape[2] and key.shape[2]
    return Work(flops, round(flops * _dropped(query.shape[2], key.shape[2])) if causal else 0)


def _attention_backward(given: Mapping[str, Any], out: Any) -> Work:
    query, key = given["query"], given["key"]
    scores, mixing = _squares(query, key, given["value"])
    # Scores again; then the gradients of queries and keys, and those of values and weights.
    flops = 3 * scores + 2 * mixing
    causal = given.get("is_causal") and query.shape[2] and key.shape[2]
    return Work(flops, round(flops * _dropped(query.shape[2], key.shape[2])) if causal else 0, scores)


def _native_attention(given: Mapping[str, Any], out: Any) -> Work:
    """``nn.MultiheadAttention`` on its fast path."""
    width = given["embed_dim"]
    flops = 0
    for query, key in zip(_sizes(given["query"]), _sizes(given["key"]), strict=True):
        queries, keys = prod(query[:-1]), prod(key[:-1])
        flops += 2 * width * width * (2 * queries + 2 * keys) + 4 * queries * key[-2] * width
    return Work(flops)


def _encoder_layer(given: Mapping[str, Any], out: Any) -> Work:
    """``nn.TransformerEncoderLayer`` on its fast path; with padding only what is kept, as it is executed."""
    width, hidden = given["embed_dim"], given["ffn_weight_1"].shape[0]
    flops = 0
    for size in _sizes(given["src"]):
        tokens = prod(size[:-1])
        flops += tokens * (8 * width * width + 4 * size[-2] * width + 4 * width * hidden)
    return Work(flops)


def _rows(given: Mapping[str, Any]) -> int:
    """Time steps times sequences that a recurrent layer sees."""
    sizes = given.get("batch_sizes")
    return sum(sizes) if sizes else prod(given["input"].shape[:-1])


def _recurrent(times: int, names: tuple[str, ...] = ()) -> Formula:
    """A fused recurrent layer: at every step every weight once; backward twice."""

    def formula(given: Mapping[str, Any], out: Any) -> Work:
        weights = [given[name] for name in names] if names else given["weight"]
        size = sum(weight.numel() for weight in weights if weight.ndim == 2)
        return Work(2 * times * _rows(given) * size)

    return formula


def _trilinear(given: Mapping[str, Any], out: Any) -> Work:
    # Two products, one after the other, over the dimensions that each tensor has (nn.Bilinear).
    expanded = [set(given[f"expand{i}"]) for i in (1, 2, 3)]
    dims = given["i1"].ndim + len(expanded[0])
    size = [1] * dims
    for name, missing in zip(("i1", "i2", "i3"), expanded, strict=True):
        own = iter(given[name].shape)
        for dim in range(dims):
            if dim not in missing:
                size[dim] = max(size[dim], next(own))
    first = [dim for dim in range(dims) if not (dim in expanded[0] and dim in expanded[1])]
    summed = {dim for dim in given["sumdim"] if dim in expanded[2]}
    second = [dim for dim in range(dims) if dim not in summed]
    return Work(2 * prod(size[dim] for dim in first) + 2 * prod(size[dim] for dim in second))


_FUSED = (
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip

FORMULAS: dict[str, Formula] = {
    **{f"aten::{name}": _matrix("self", "mat2") for name in ("mm", "bmm", "_int_mm", "_scaled_mm")},
    **{f"aten::{name}": _matrix("mat1", "mat2") for name in ("addmm", "_addmm_activation")},
    **{f"aten::{name}": _matrix("batch1", "batch2") for name in ("baddbmm", "addbmm")},
    "aten::matmul": _matrix("self", "other"),
    "aten::linear": _linear(1, "input"),
    "aten::linear_backward": _linear(2, "self"),
    "aten::mv": _matrix("self", "vec"),
    "aten::addmv": _matrix("mat", "vec"),
    "aten::dot": _matrix("self", "tensor"),
    "aten::vdot": _matrix("self", "other"),
    "aten::addr": _outer,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "aten::_sparse_addmm": _matrix("mat1", "mat2"),
    **{
        f"aten::{name}": _few_bits
        for name in (
            "_weight_int8pack_mm",
            "_weight_int4pack_mm",
            "_weight_int4pack_mm_for_cpu",
            "_dyn_quant_matmul_4bit",
        )
    },
    **{f"quantized::{name}": _packed_linear for name in ("linear", "linear_relu", "linear_dynamic")},
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    **dict.fromkeys(_FUSED, _attention),
    **{f"{name}_backward": _attention_backward for name in _FUSED},
    "aten::_native_multi_head_attention": _native_attention,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
    "aten::mkldnn_rnn_layer": _recurrent(1, ("weight0", "weight1")),
    "aten::mkldnn_rnn_layer_backward": _recurrent(2, ("weight1", "weight2")),
    "aten::_cudnn_rnn": _recurrent(1),
    "aten::_cudnn_rnn_backward": _recurrent(2),
    "aten::_trilinear": _trilinear,
}
"""Operator -> its formula."""

# By base name: ``_backward``, ``_copy``, ``_forward`` and the underscore of in-place operators are taken off first.
# Operators that torch itself tags as pointwise, reduction or view need no entry.
_FREE = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _add_relu _assert_async _assert_scalar _assert_tensor_metadata
    _batch_norm_no_update _batch_norm_with_update _embedding_bag _embedding_bag_dense _embedding_bag_forward_only
    _embedding_bag_per_sample_weights _fused_dropout _fused_rms_norm
    _linalg_check_errors _local_scalar_dense _log_softmax _masked_scale _native_batch_norm_legit
    _native_batch_norm_legit_no_training _nested_from_padded _nested_tensor_from_mask
    _nested_tensor_from_mask_left_aligned _nested_tensor_from_tensor_list _nested_tensor_size _nested_view_from_buffer
    _pack_padded_sequence _pin_memory _prelu_kernel _reshape _resize_output _reshape_alias _safe_softmax _softmax
    _sparse_coo_tensor_with_dims_and_tensors _sparse_sum _sparse_log_softmax _sparse_softmax
    _sparse_coo_tensor_unsafe _sparse_mask_projection _coalesce _coalesced _indices _values _nnz
    _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell
    _to _to_dense _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc
    _sparse_csr_tensor_unsafe _sparse_compressed_tensor_unsafe crow_indices col_indices ccol_indices row_indices
    _unique _unique2 _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_lanczos2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    _weight_norm_interface _empty_affine_quantized _padded_dense_to_jagged _jagged_to_padded_dense _functional_assert
    _functional_assert_async _segment_reduce _chunk_cat
    adaptive_max_pool2d adaptive_max_pool3d affine_grid_generator alias aminmax arange as_strided as_strided_scatter
    avg_pool2d avg_pool3d batch_norm bernoulli binary_cross_entropy binary_cross_entropy_with_logits bincount
    block_diag bucketize cat cauchy channel_shuffle clone col2im complex constant_pad_nd copy cummax cummin cumprod
    cumsum dequantize detach diag_embed diagonal diagonal_scatter dist elu embedding embedding_dense embedding_renorm
    embedding_sparse empty empty_like empty_permuted empty_strided empty_quantized expand exponential eye fill flip
    floor_divide fractional_max_pool2d full full_like gather geometric glu grid_sampler_2d grid_sampler_3d
    hann_window hardsigmoid hardswish hardtanh histc huber_loss im2col index index_add index_copy index_fill index_put
    index_reduce index_select isin is_coalesced is_non_overlapping_and_dense is_nonzero is_pinned is_same_size
    is_strides_like_format is_contiguous kthvalue leaky_relu lift lift_fresh linspace log_normal log_sigmoid
    logcumsumexp logspace masked_fill masked_scatter masked_select max_pool2d_with_indices max_pool3d_with_indices
    max_unpool2d max_unpool3d median mode mse_loss multi_margin_loss multilabel_margin_loss multinomial nanmedian
    narrow native_batch_norm native_dropout native_group_norm native_layer_norm nested_from_padded new_empty
    new_empty_strided new_full new_ones new_zeros nll_loss nll_loss2d nonzero nonzero_static normal numel ones
    ones_like permute pixel_shuffle pixel_unshuffle poisson polar quantize_per_tensor quantize_per_channel rand
    rand_like randint randint_like randn randn_like randperm record_stream reflection_pad1d reflection_pad2d
    reflection_pad3d renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d resize
    resize_as roll rot90 rrelu_with_noise scalar_tensor scatter scatter_add scatter_reduce searchsorted segment_reduce
    select select_scatter set size slice slice_scatter smooth_l1_loss soft_margin_loss softplus sort split
    split_with_sizes squeeze stack stride storage_offset sym_constrain_range sym_constrain_range_for_size sym_numel
    sym_size sym_storage_offset sym_stride t take to_padded_tensor topk transpose tril tril_indices triu triu_indices
    trace unbind unfold uniform unique_consecutive unique_dim unsafe_split unsafe_split_with_sizes unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d var_mean std_mean view zero zeros zeros_like
    """

FREE = frozenset(_FREE.split())
"""Operators of torch that count 0."""

_PLAIN = {torch.Tag.pointwise, *([torch.Tag.reduction] if hasattr(torch.Tag, "reduction") else [])}
_ENDINGS = ("_backward_data", "_backward", "_forward", "_functional", "_copy")


def is_free(operator: Any) -> bool:
    """Whether an operator (``torch.ops.aten.relu.default``) counts 0 by convention.

    Example:
        >>> is_free(torch.ops.aten.relu.default), is_free(torch.ops.aten.linalg_qr.default)
        (True, False)
    """
    if _PLAIN & set(operator.tags) or operator.is_view:
        return True
    space, _, name = operator.name().partition(".")[0].partition("::")
    if space == "prim":
        return True
    if space == "quantized":
        return bool(name.endswith(("prepack", "unpack")))
    if space != "aten":
        return False
    base = name.removesuffix("_")
    return any(base.removesuffix(ending).removesuffix("_") in FREE for ending in ("", *_ENDINGS))


def bound(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the operator's schema, those left out at their defaults."""
    given: dict[str, Any] = {}
    for i, argument in enumerate(operator._schema.arguments):
        if i < len(args):
            given[argument.name] = args[i]
        else:
            given[argument.name] = kwargs.get(argument.name, argument.default_value)
    return given


def work_of(
    operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, own: Mapping[str, Formula]
) -> Work | None:
    """FLOPs of one call; None where nothing is known of the operator.

    Args:
        operator: an overload, or a higher-order operator.
        args, kwargs, out: its call and result.
        own: formulas that go before those of this file.
    """
    from torch.utils.flop_counter import flop_registry

    if not hasattr(operator, "_schema"):  # higher-order: flex attention and the like
        theirs = flop_registry.get(operator)
        return None if theirs is None else Work(int(theirs(*args, **kwargs, out_val=out)))
    name = operator.name().partition(".")[0]
    formula = own.get(name) or FORMULAS.get(name)
    if formula is not None:
        return formula(bound(operator, args, kwargs), out)
    theirs = flop_registry.get(operator._overloadpacket)
    if theirs is not None:
        return Work(int(theirs(*args, **kwargs, out_val=out)))
    return Work(0) if is_free(operator) else None
