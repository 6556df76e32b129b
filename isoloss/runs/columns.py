"""takes a column name, gives its meaning and unit: the vocabulary of canonical columns.

Every other part of the package says ``params``, ``tokens``, ``loss``; what a file calls them is
said once, at the door, with ``columns=`` or ``--columns``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["CANONICAL", "Column", "last_part", "listed", "options", "resolve"]

Kind = Literal["count", "loss", "number", "text", "label"]


@dataclass(frozen=True)
class Column:
    """One canonical column.

    Args:
        name: the name all of isoloss uses.
        kind: ``count`` (also reads ``70B``), ``loss``, ``number``, ``text`` (never read as a
            number) or ``label`` (a number where every cell is one, else text).
        unit: its unit, ``""`` where it has none.
        meaning: one line.
        also: names that files use for it, likeliest first; only suggested, never applied unasked.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    also: str = ""


_COLUMNS = (
    Column(
        "run",
        "text",
        "",
        "identifier of the run; rows of one run share it",
        also="run_id run_name id name",
    ),
    Column(
        "family",
        "text",
        "",
        "group of runs that share a recipe",
        also="model_family arch series",
    ),
    Column(
        "params",
        "count",
        "count",
        "parameters, embeddings included",
        also=(
            "n n_params num_params nparams parameters n_parameters num_parameters params_total "
            "total_params param_count model_size params_m params_b params_billion size model_params"
        ),
    ),
    Column(
        "params_nonembedding",
        "count",
        "count",
        "parameters without embeddings",
        also="non_embedding_params params_non_embedding n_nonemb params_nonvocab",
    ),
    Column(
        "params_active",
        "count",
        "count",
        "parameters used for one token (mixture of experts)",
        also="active_params n_active",
    ),
    Column(
        "params_trainable",
        "count",
        "count",
        "parameters that training moves, the others frozen",
        also="trainable_params n_trainable",
    ),
    Column(
        "experts",
        "count",
        "count",
        "experts per routed layer, 1 for a dense model",
        also="n_experts num_experts",
    ),
    Column("expert_density", "number", "", "share of the experts that one token uses, 1 for a dense model"),
    Column(
        "streams",
        "count",
        "count",
        "parallel streams of one model",
        also="n_streams parallel_size",
    ),
    Column(
        "tokens",
        "count",
        "count",
        "training tokens seen, repeats included",
        also=(
            "d n_tokens num_tokens train_tokens training_tokens tokens_trained tokens_seen "
            "total_tokens token_count tokens_billion tokens_trillion dataset_size"
        ),
    ),
    Column(
        "tokens_unique",
        "count",
        "count",
        "distinct training tokens",
        also="unique_tokens",
    ),
    Column(
        "vocab_params",
        "count",
        "count",
        "parameters of the vocabulary: its entries times the width",
        also="params_vocab n_vocab_params embedding_params",
    ),
    Column(
        "vocab_size",
        "count",
        "count",
        "entries of the tokeniser's vocabulary",
        also="n_vocab vocabulary_size",
    ),
    Column(
        "characters",
        "count",
        "count",
        "characters of the training text seen",
        also="chars n_characters num_characters",
    ),
    Column(
        "samples",
        "count",
        "count",
        "training samples seen, repeats included",
        also="samples_seen n_samples examples_seen",
    ),
    Column(
        "pool",
        "count",
        "count",
        "distinct samples that training draws from",
        also="pool_size samples_unique",
    ),
    # Numbers: 0 of a kind is a design, not a mistake.
    Column("samples_clean", "number", "count", "training samples without added noise", also="n_clean"),
    Column(
        "samples_noisy", "number", "count", "training samples known at a noise level only", also="n_noisy"
    ),
    Column(
        "epochs",
        "number",
        "",
        "passes over the distinct tokens",
        also="epoch n_epochs",
    ),
    Column(
        "flops",
        "count",
        "FLOP",
        "training FLOPs, forward and backward",
        also="c compute train_flops training_flops total_flops flop flops_6nd",
    ),
    Column(
        "loss",
        "loss",
        "nats/token",
        "cross-entropy on held-out text",
        also=(
            "l val_loss valid_loss validation_loss eval_loss test_loss loss_nats val_loss_nats "
            "final_loss loss_final train_loss train_loss_nats test_loss_nats ppl perplexity bpb"
        ),
    ),
    Column(
        "loss_sd",
        "number",
        "as loss",
        "known standard deviation of that run's loss",
        also="loss_std loss_se",
    ),
    Column(
        "weight",
        "number",
        "",
        "weight of the row in a fit",
        also="weights",
    ),
    Column(
        "lr",
        "number",
        "",
        "peak learning rate",
        also="lr_peak peak_lr learning_rate max_lr",
    ),
    Column(
        "bits_weights", "number", "bit", "bits of the weights in training", also="bits_weight weight_bits"
    ),
    Column(
        "bits_activations", "number", "bit", "bits of the activations in training", also="activation_bits"
    ),
    Column("bits_kv", "number", "bit", "bits of the KV cache in training", also="kv_bits"),
    Column(
        "bits_post", "number", "bit", "bits of the weights after post-training quantisation", also="ptq_bits"
    ),
    Column("exponent_bits", "number", "bit", "exponent bits of the floating-point format of training"),
    Column("mantissa_bits", "number", "bit", "mantissa bits of the floating-point format of training"),
    Column(
        "scale_block",
        "number",
        "",
        "elements that share one scale",
        also="block_size_scale scale_block_size",
    ),
    Column(
        "batch_tokens",
        "count",
        "count",
        "tokens per optimiser step",
        also="tokens_per_batch batch_size_tokens",
    ),
    Column(
        "batch_sequences",
        "count",
        "count",
        "sequences per optimiser step",
        also="global_train_batch_size global_batch_size",
    ),
    Column("critical_batch", "count", "count", "critical batch in tokens, by the rule that its maker says"),
    Column(
        "seq_len",
        "count",
        "count",
        "context length in tokens",
        also="context_length ctx block_size",
    ),
    Column(
        "step",
        "count",
        "count",
        "optimiser step this row was measured at",
        also="_step iteration iter",
    ),
    Column(
        "steps",
        "count",
        "count",
        "optimiser steps of the whole run",
        also="n_steps max_steps total_steps",
    ),
    Column("steps_min", "count", "count", "steps that a batch far above the critical one would take"),
    Column("fraction_of_run", "number", "", "step / steps, 1 at the end"),
    Column("max_attention_logit", "number", "", "largest attention logit, of one block at one step"),
    Column(
        "state",
        "text",
        "",
        "how the run ended: finished, failed, crashed, running",
        also="status",
    ),
    Column(
        "seed",
        "label",
        "",
        "random seed",
        also="rng_seed random_seed",
    ),
)

CANONICAL: dict[str, Column] = {column.name: column for column in _COLUMNS}


def last_part(name: str) -> str:
    """The name without its export prefix.

    Example:
        >>> last_part("metrics.val_loss"), last_part("eval/loss"), last_part("loss")
        ('val_loss', 'loss', 'loss')
    """
    return name.replace("/", ".").rsplit(".", 1)[-1]


def listed(names: Iterable[object], limit: int = 16) -> str:
    """Names joined for a message, cut after ``limit``.

    Example:
        >>> listed(["N", "D", "loss"], limit=2)
        'N, D, … (3 in all)'
    """
    every = [str(name) for name in names]
    if len(every) <= limit:
        return ", ".join(every)
    return ", ".join(every[:limit]) + f", … ({len(every)} in all)"


def resolve(wanted: str, available: Collection[str]) -> str:
    """The column of a table that a name means: itself, else a unique last part, else a unique spelling.

    Args:
        wanted: what was asked for.
        available: the names in the table.

    Raises:
        ValueError: no column, or more than one, is meant.

    Example:
        >>> resolve("val_loss", ["metrics.val_loss", "params.lr"])
        'metrics.val_loss'
    """
    if wanted in available:
        return wanted
    for candidates in (
        [name for name in available if last_part(name) == wanted],
        [name for name in available if name.lower() == wanted.lower()],
        [name for name in available if last_part(name).lower() == wanted.lower()],
    ):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise ValueError(f"column {wanted!r} could be {listed(candidates)}. Do: give the full name")
    raise ValueError(f"no column {wanted!r}; the table has {listed(available)}")


def options(missing: Sequence[str], available: Collection[str]) -> str:
    """The likely ``--columns`` value for canonical columns that a table lacks, ``""`` if none is likely.

    Example:
        >>> options(["params", "tokens", "loss"], ["N", "D", "val_loss", "seed"])
        'params=N,tokens=D,loss=val_loss'
    """
    found = []
    for name in missing:
        also = CANONICAL[name].also.split() if name in CANONICAL else []
        # the order of `also` is the order of likelihood; a full name beats a last part
        for spelling in (name, *also):
            hits = [c for c in available if c.lower() == spelling] or [
                c for c in available if last_part(c).lower() == spelling
            ]
            if hits:
                found.append(f"{name}={hits[0]}")
                break
        else:
            hits = [c for c in available if c.startswith(f"{name}_")]
            if name == "loss" and hits:
                found.append(f"{name}={hits[0]}")
    return ",".join(found)
