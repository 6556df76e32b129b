# mypy: ignore-errors
# ruff: noqa: RUF005, SIM108, B007
# What is in here is Triton's language, not Python; where Triton is not installed mypy could not read it at all.
"""Triton kernels of packed weights: codes taken out of their planes, looked up, multiplied, added up in float32.

They read the layout of the CPU kernels (:mod:`isoloss.deploy.planes`, ``native/bytes.h``), so that a packed file serves both.
It suits a GPU: the vectors of a block lie one behind another, and neighbouring threads take neighbouring pieces of 16 bytes
of a vector, so that a warp reads whole sectors of 32 bytes, and each vector once. What is taken out of one byte belongs to
columns 64 apart (tables) or 4 apart (levels): only the place where activations are read depends on it.

Rows, blocks and tokens beyond the end are read as the last ones and multiplied with zeros, or not stored.
"""

import triton
import triton.language as tl

MAGIC = tl.constexpr(0x4B000000)  # the float32 2^23, whose last bits count ones
SHIFT = tl.constexpr(8388608.0)
TYPES = {"float32": tl.float32, "float16": tl.float16, "bfloat16": tl.bfloat16}


@triton.jit
def _whole(n):
    """A whole number below 2^23 as float32: conversions have a quarter of the rate of the two operations here."""
    return (n | MAGIC).to(tl.float32, bitcast=True) - SHIFT


@triton.jit
def _loaded(at, stride, BITS: tl.constexpr):
    """The vectors of a block, a byte to a lane."""
    v = (tl.load(at).to(tl.int32),)
    for i in tl.static_range(1, BITS):
        v = v + (tl.load(at + i * stride).to(tl.int32),)
    return v


@triton.jit
def _plane(v, p: tl.constexpr, BITS: tl.constexpr):
    """Codes of plane p of loaded vectors; ``plane`` of ``native/bytes.h``."""
    if BITS == 8:
        code = v[p]
    elif BITS == 3 and p < 6:
        code = (v[p // 2] >> (3 * (p % 2))) & 7
    elif BITS == 3:
        code = (v[p - 6] >> 6) | (((v[2] >> p) & 1) << 2)
    elif BITS < 5:
        code = (v[p // (8 // BITS)] >> (BITS * (p % (8 // BITS)))) & ((1 << BITS) - 1)
    else:
        code = (v[p // 2] >> (4 * (p % 2))) & 15
        if BITS == 5:
            code = code | (((v[4] >> p) & 1) << 4)
        else:
            code = code | (((v[4 + p // 4] >> (2 * (p % 4))) & 3) << 4)
        if BITS == 7:
            code = code | (((v[6] >> p) & 1) << 6)
    return code


@triton.jit
def _code_at(codes, at, stride, p, BITS: tl.constexpr):
    """One code of plane p (any, not one for all) of the block that begins at ``at``."""
    here = codes + at
    if BITS == 8:
        code = tl.load(here + p * stride).to(tl.int32)
    elif BITS == 3:
        pair = p < 6
        first = tl.load(here + tl.where(pair, p // 2, p - 6) * stride).to(tl.int32)
        above = (tl.load(here + 2 * stride).to(tl.int32) >> p) & 1
        code = ((first >> tl.where(pair, 3 * (p % 2), 6)) & 7) | tl.where(pair, 0, above << 2)
    elif BITS < 5:
        each: tl.constexpr = 8 // BITS
        code = tl.load(here + p // each * stride).to(tl.int32) >> (p % each * BITS)
        code = code & ((1 << BITS) - 1)
    else:
        code = (tl.load(here + p // 2 * stride).to(tl.int32) >> (p % 2 * 4)) & 15
        if BITS == 5:
            code = code | (((tl.load(here + 4 * stride).to(tl.int32) >> p) & 1) << 4)
        else:
            code = code | (((tl.load(here + (4 + p // 4) * stride).to(tl.int32) >> (p % 4 * 2)) & 3) << 4)
        if BITS == 7:
            code = code | (((tl.load(here + 6 * stride).to(tl.int32) >> p) & 1) << 6)
    return code


@triton.jit
def _entry(first, second, code, BITS: tl.constexpr, SIZE: tl.constexpr):
    """The entry, of 8 or 16 bits, of a code in a table of one or two words of 64 bits: a shift, no memory."""
    each: tl.constexpr = 3 if SIZE == 8 else 2
    at = ((code & ((1 << each) - 1)) * SIZE).to(tl.int64)
    low = (first >> at).to(tl.int32)
    if each < BITS:
        low = tl.where((code & (1 << each)) == 0, low, (second >> at).to(tl.int32))
    return low & 255 if SIZE == 8 else low


@triton.jit
def _table_slots(
    sums, codes, table, step, low, x, row, row_bytes, columns, segments, from_slot, slots,
    GROUP: tl.constexpr, PER: tl.constexpr, BYTES: tl.constexpr, BITS: tl.constexpr, FLOATS: tl.constexpr,
    R: tl.constexpr, T: tl.constexpr, B: tl.constexpr, W: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """B runs of columns, ``PER`` to a group, of W lanes at most: their share of T * R sums.

    A tile of codes and one of activations have the same shape, so that a thread holds the same lanes of both.
    EVEN: this run and those before it have W lanes exactly, so that nothing but the slot's number says where they lie.
    """
    slot = from_slot + tl.arange(0, B)[:, None]
    here = tl.minimum(slot, slots - 1)
    lane = tl.arange(0, W)[None, :]
    segment = here // PER
    if EVEN:
        wide = W
        count = 8 * W
        offset = here * (BITS * W) + lane
        column = here * (8 * W) + lane
        own = (slot < slots) & (lane < W)
    else:
        run = here % PER
        count = tl.minimum(512, tl.minimum(GROUP, columns - segment * GROUP) - 512 * run)
        wide = (count + 7) // 8
        offset = segment * BYTES + run * (64 * BITS) + tl.minimum(lane, wide - 1)
        column = segment * GROUP + run * 512 + lane
        own = (slot < slots) & (lane < wide)
    size: tl.constexpr = 16 if FLOATS else 8
    words: tl.constexpr = (1 << BITS) * size // 64
    kept: tl.constexpr = words <= 2  # else the first-level cache keeps the table
    v = ()
    first = ()
    second = ()
    for i in tl.static_range(R):
        v = v + (_loaded(codes + row[i] * row_bytes + offset, wide, BITS),)
        place = row[i] * segments + segment
        if kept:
            first = first + (tl.load(table + place * max(words, 1)).to(tl.int64),)
        if words == 2:
            second = second + (tl.load(table + place * 2 + 1),)
    total = ()
    plain = ()
    for i in tl.static_range(T * R):
        total = total + (tl.zeros((B, W), tl.float32),)
    for t in tl.static_range(T):
        plain = plain + (tl.zeros((B, W), tl.float32),)
    for p in tl.static_range(8):
        inside = own if EVEN else own & (p * wide + lane < count)
        acts = ()
        more = ()
        for t in tl.static_range(T):
            act = tl.load(x + t * columns + (column + p * wide), mask=inside, other=0.0).to(tl.float32)
            acts = acts + (act,)
            more = more + (plain[t] + act,)
        plain = more
        more = ()
        for i in tl.static_range(R):
            code = _plane(v[i], p, BITS)
            if kept:
                entry = _entry(first[i], second[i] if words == 2 else first[i], code, BITS, size)
            else:
                entry = tl.load(table + ((row[i] * segments + segment) << BITS) + code)
            if not FLOATS:
                value = _whole(entry.to(tl.int32))
            elif kept:
                value = entry.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            else:
                value = entry.to(tl.float32)
            for t in tl.static_range(T):
                more = more + (total[i * T + t] + value * acts[t],)
        total = more
    out = ()
    for i in tl.static_range(R):
        for t in tl.static_range(T):
            share = tl.sum(total[i * T + t], axis=1, keep_dims=True)
            if not FLOATS:
                place = row[i] * segments + segment
                share = share * tl.load(step + place)
                share += tl.sum(plain[t], axis=1, keep_dims=True) * tl.load(low + place)
            out = out + (sums[i * T + t] + tl.sum(share),)
    return out


@triton.jit
def table_few(
    out, codes, table, step, low, x, bias, values, places, pointers,
    rows, columns, segments, row_bytes, even, slots,
    GROUP: tl.constexpr, PER: tl.constexpr, BYTES: tl.constexpr, BITS: tl.constexpr, FLOATS: tl.constexpr,
    R: tl.constexpr, T: tl.constexpr, B: tl.constexpr, REST: tl.constexpr, W: tl.constexpr,
    BIAS: tl.constexpr, OUTLIERS: tl.constexpr,
):  # fmt: skip
    """T tokens times R rows of codes with a table per row and group."""
    row = ()
    sums = ()
    for i in tl.static_range(R):
        row = row + (tl.minimum(tl.program_id(0) * R + i, rows - 1).to(tl.int64),)
    for i in tl.static_range(T * R):
        sums = sums + (0.0,)
    for slot in range(0, even, B):
        sums = _table_slots(
            sums, codes, table, step, low, x, row, row_bytes, columns, segments, slot, even,
            GROUP, PER, BYTES, BITS, FLOATS, R, T, B, W, True,
        )  # fmt: skip
    for slot in range(even, slots, REST):
        sums = _table_slots(
            sums, codes, table, step, low, x, row, row_bytes, columns, segments, slot, slots,
            GROUP, PER, BYTES, BITS, FLOATS, R, T, REST, W, False,
        )  # fmt: skip
    for i in tl.static_range(R):
        for t in tl.static_range(T):
            _finished(
                out, sums[i * T + t], tl.program_id(0) * R + i, t, x, bias, values, places, pointers, rows, columns,
                BIAS, OUTLIERS,
            )  # fmt: skip


@triton.jit
def _finished(
    out, one, r, t, x, bias, values, places, pointers, rows, columns,
    BIAS: tl.constexpr, OUTLIERS: tl.constexpr,
):  # fmt: skip
    """The sum of a row and a token, with what lies beside, stored."""
    if r < rows:
        if OUTLIERS:
            end = tl.load(pointers + r + 1)
            for k in range(tl.load(pointers + r), end, 32):
                at = k + tl.arange(0, 32)
                value = tl.load(values + at, mask=at < end, other=0.0).to(tl.float32)
                place = tl.load(places + at, mask=at < end, other=0).to(tl.int32)
                act = tl.load(x + t * columns + place, mask=at < end, other=0.0).to(tl.float32)
                one += tl.sum(value * act)
        if BIAS:
            one += tl.load(bias + r).to(tl.float32)
        tl.store(out + t * rows + r, one)


@triton.jit
def levels_few(
    out, codes, table, scale, zero, x, bias, values, places, pointers,
    rows, columns, segments, blocks,
    GROUP: tl.constexpr, PER: tl.constexpr, BITS: tl.constexpr, TIMES: tl.constexpr, OFFSET: tl.constexpr,
    T: tl.constexpr, B: tl.constexpr,
    TABLE: tl.constexpr, ZERO: tl.constexpr, BIAS: tl.constexpr, OUTLIERS: tl.constexpr,
):  # fmt: skip
    """T tokens times a tile of 16 rows of whole numbers with a scale per row and group of ``PER`` blocks."""
    tile = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, 64)[None, :]
    first = tl.load(table) if TABLE else 0
    second = tl.load(table + 1) if TABLE else 0
    sums = ()
    for t in tl.static_range(T):
        sums = sums + (tl.zeros((B, 64), tl.float32),)
    for from_block in range(0, blocks, B):
        block = from_block + tl.arange(0, B)[:, None]
        here = tl.minimum(block, blocks - 1)
        segment = here // PER
        v = _loaded(codes + (tile * blocks + here) * (64 * BITS) + lane, 64, BITS)
        if GROUP % 32 == 0:
            column = 32 * here + lane % 4
            end = columns
        else:
            column = segment * GROUP + 32 * (here % PER) + lane % 4
            end = tl.minimum((segment + 1) * GROUP, columns)
        place = (tile * segments + segment) * 16 + tl.arange(0, 16)[None, :]
        taken = SHIFT - OFFSET
        if ZERO:
            taken = _four_times(_whole(tl.load(zero + place).to(tl.int32)) + (SHIFT - OFFSET), B)
        total = ()
        for t in tl.static_range(T):
            total = total + (tl.zeros((B, 64), tl.float32),)
        for p in tl.static_range(8):
            code = _plane(v, p, BITS)
            if TABLE:
                code = _entry(first, second, code, BITS, 8)
            value = ((code * TIMES) | MAGIC).to(tl.float32, bitcast=True) - taken
            inside = (column + 4 * p < end) & (block < blocks)
            more = ()
            for t in tl.static_range(T):
                act = tl.load(x + t * columns + (column + 4 * p), mask=inside, other=0.0).to(tl.float32)
                more = more + (total[t] + value * act,)
            total = more
        factor = _four_times(tl.load(scale + place).to(tl.float32), B)
        more = ()
        for t in tl.static_range(T):
            more = more + (sums[t] + total[t] * factor,)
        sums = more
    r = tl.program_id(0) * 16 + tl.arange(0, 16)
    for t in tl.static_range(T):
        some = tl.sum(tl.reshape(tl.sum(sums[t], axis=0), (16, 4)), axis=1)
        if OUTLIERS:
            start = tl.load(pointers + tl.minimum(r, rows - 1))
            end = tl.load(pointers + tl.minimum(r + 1, rows))
            for k in range(0, tl.max(end - start, axis=0), 32):
                at = start[:, None] + k + tl.arange(0, 32)[None, :]
                own = at < end[:, None]
                value = tl.load(values + at, mask=own, other=0.0).to(tl.float32)
                column = tl.load(places + at, mask=own, other=0).to(tl.int32)
                act = tl.load(x + t * columns + column, mask=own, other=0.0).to(tl.float32)
                some += tl.sum(value * act, axis=1)
        if BIAS:
            some += tl.load(bias + r, mask=r < rows, other=0.0).to(tl.float32)
        tl.store(out + t * rows + r, some, mask=r < rows)


@triton.jit
def _four_times(one, B: tl.constexpr):
    """(B, 16) -> (B, 64): the rows' numbers for the four columns that lie side by side."""
    return tl.reshape(tl.broadcast_to(one[:, :, None], (B, 16, 4)), (B, 64))


@triton.jit
def many(
    out, codes, table, step, low, zero, x, bias, values, places, pointers,
    rows, columns, segments, row_bytes, tokens,
    GROUP: tl.constexpr, PER: tl.constexpr, BYTES: tl.constexpr, BITS: tl.constexpr, TIMES: tl.constexpr,
    OFFSET: tl.constexpr, LEVELS: tl.constexpr, FLOATS: tl.constexpr, TABLE: tl.constexpr, ZERO: tl.constexpr,
    BIAS: tl.constexpr, OUTLIERS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """N tokens times R rows of either kind: K columns are looked up at once, and the matrix unit multiplies.

    It multiplies the bytes of tables and whole numbers, which fp16 and bf16 hold exactly; scales come after.
    """
    r = tl.program_id(0) * R + tl.arange(0, R)
    row = tl.minimum(r, rows - 1).to(tl.int64)[:, None]
    t = (tl.program_id(1) * N + tl.arange(0, N)).to(tl.int64)[None, :]
    if LEVELS:
        from_row = row // 16 * row_bytes + row % 16 * 4
    else:
        from_row = row * row_bytes
    sums = tl.zeros((R, N), tl.float32)
    for s in range(0, segments):
        width = tl.minimum(GROUP, columns - s * GROUP)
        total = tl.zeros((R, N), tl.float32)
        plain = tl.zeros((N,), tl.float32)
        place = (row // 16 * segments + s) * 16 + row % 16 if LEVELS else row * segments + s
        for k in range(0, width, K):
            c = k + tl.arange(0, K)
            inside = (c < width)[:, None] & (t < tokens)
            act = tl.load(x + t * columns + (s * GROUP + c)[:, None], mask=inside, other=0.0)
            c = tl.minimum(c, width - 1)
            if LEVELS:
                at = ((s * PER + c // 32) * (64 * BITS) + c % 4)[None, :]
                code = _code_at(codes, from_row + at, 64, (c % 32 // 4)[None, :], BITS)
                if TABLE:
                    code = tl.load(table + code).to(tl.int32)
                whole = code * TIMES + OFFSET
                if ZERO:
                    whole -= tl.load(zero + place).to(tl.int32)
                value = whole.to(tl.float32)
            else:
                run = k // 512
                c -= run * 512
                wide = (tl.minimum(512, width - run * 512) + 7) // 8
                at = (s * BYTES + run * (64 * BITS) + c % wide)[None, :]
                code = _code_at(codes, from_row + at, wide, (c // wide)[None, :], BITS)
                value = tl.load(table + (place << BITS) + code).to(tl.float32)
            total = tl.dot(value.to(DOT), act.to(DOT), total, input_precision=PRECISION)
            if not LEVELS and not FLOATS:
                plain += tl.sum(act.to(tl.float32), axis=0)
        if FLOATS:
            sums += total
        else:
            sums += total * tl.load(step + place).to(tl.float32)
            if not LEVELS:
                sums += tl.load(low + place) * plain[None, :]
    if OUTLIERS:
        start = tl.load(pointers + tl.minimum(r, rows - 1))
        end = tl.load(pointers + tl.minimum(r, rows - 1) + 1)
        for k in range(0, tl.max(end - start, axis=0)):
            own = start + k < end
            value = tl.load(values + start + k, mask=own, other=0.0).to(tl.float32)
            column = tl.load(places + start + k, mask=own, other=0).to(tl.int32)
            act = tl.load(x + t * columns + column[:, None], mask=own[:, None] & (t < tokens), other=0.0)
            sums += value[:, None] * act.to(tl.float32)
    if BIAS:
        sums += tl.load(bias + r, mask=r < rows, other=0.0).to(tl.float32)[:, None]
    tl.store(out + t * rows + r[:, None], sums, mask=(t < tokens) & (r < rows)[:, None])
