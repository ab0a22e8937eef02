//! Many tokens at a time: GEMM of ternary rows by table look-up, three columns in one `vpermw`.
//!
//! One `vpdpbusd` a cycle is 64 products, and no other instruction multiplies more. But three codes have only 27
//! sums with the three int8 of a token. As 16-bit numbers these fill one register, in which `vpermw` looks them up
//! for 32 rows: 96 products for one look-up and one addition, while the multipliers are free for `vpdpbusd`. So of
//! eight bytes of a row four are looked up and four are multiplied, at the same time.
//!
//! Both want rows side by side in a register. Weights are therefore transposed, a chunk of columns at a time, and
//! used for all tokens; tables are built once for all rows of a span. The three steps are separate functions that
//! are never inlined: in one function the compiler keeps none of their values in registers. Tiles of eight tokens
//! are written in assembly (`gemm_lut_asm.rs`), smaller ones at the end are not.
//!
//! Tried, in GMAC/s for 512 rows of 2560 and 126 tokens, where plain tiles have 193 and this had 261: tables for 32
//! tokens in memory with a row's index as the address, 200; the same with `vpdpbusd` in one loop, not in assembly,
//! 211.

use super::gemm_lut_asm;
use super::lut_layout::{ActivationTables, BAND, CHUNK_TILES, MAX_TOKENS, WeightTile};
use crate::engine::kernels::BatchKernel;
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;
use std::ops::Range;

/// The batch kernel. Transposing weights pays from 24 tokens on, building tables from 112 rows on. Measured in
/// GMAC/s for rows of 2560 on Zen 4, where plain tiles have 193: 640 rows, 18 tokens 212, 32 tokens 236, 128 tokens
/// 275; 128 tokens, 160 rows 237, 768 rows 289; 80 rows 165, before transposing became faster.
pub(super) const BATCH: BatchKernel = BatchKernel { min_tokens: 24, min_rows: 112, kernel: gemm_lut };
/// Rows that share the tables of a chunk: 28 bands fill 172 KB, so that the sums of all tokens also fit into an L2
/// cache of 1 MB. `tests/bench/RESULTS.md` has the figures of other sizes.
const SPAN: usize = 28 * BAND;
/// Bytes of a row that make a unit: 32 columns.
const TILE_BYTES: usize = 8;
/// Tokens of the next tile: eight, or six, five and four at the end. At first eight or more are left.
fn next_tile(left: usize) -> usize {
    match left {
        9 => 5,
        10 | 11 | 15 => 6,
        _ => left.min(MAX_TOKENS),
    }
}

/// Multiplies all rows by eight tokens or more. `q`: `[tokens, cols]`, `out`: `[tokens, rows]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn gemm_lut(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let (width, rows) = (packed_row(cols), out.len() / (q.len() / cols));
    out.fill(0);
    for first in (0..rows).step_by(SPAN) {
        let last = (first + SPAN).min(rows);
        add_span(&weights[first * width..last * width], q, cols, first, out);
    }
}

/// Adds the products of one span of rows, whose first row has index `first` in `out`: `[tokens, rows]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_span(weights: &[u8], q: &[i8], cols: usize, first: usize, out: &mut [i32]) {
    let (width, rows) = (packed_row(cols), out.len() / (q.len() / cols));
    // SAFETY: the type consists of integers, for which zeros are valid values.
    let mut bands: [[WeightTile; CHUNK_TILES]; SPAN / BAND] = unsafe { std::mem::zeroed() };
    // SAFETY: the same.
    let mut tables: [ActivationTables; CHUNK_TILES] = unsafe { std::mem::zeroed() };
    for start in (0..width / TILE_BYTES).step_by(CHUNK_TILES) {
        let tiles = CHUNK_TILES.min(width / TILE_BYTES - start);
        // The distance to what is transposed next: the following columns, or at the end of a row the following
        // rows.
        let is_last = start + tiles == width / TILE_BYTES;
        let ahead = if is_last { weights.len() - start * TILE_BYTES } else { tiles * TILE_BYTES };
        for (weights, band) in weights.chunks(BAND * width).zip(&mut bands) {
            transpose(weights, width, start, ahead, &mut band[..tiles]);
        }
        let span = Span { bands: &bands, tiles: start..start + tiles, rows: weights.len() / width };
        let (mut q, mut out) = (q, &mut *out);
        while !q.is_empty() {
            let tokens = next_tile(q.len() / cols);
            let (these, rest) = q.split_at(tokens * cols);
            let (sums, others) = out.split_at_mut(tokens * rows);
            match tokens {
                4 => span.add_tile::<4>(these, cols, &mut tables, &mut sums[first..], rows),
                5 => span.add_tile::<5>(these, cols, &mut tables, &mut sums[first..], rows),
                6 => span.add_tile::<6>(these, cols, &mut tables, &mut sums[first..], rows),
                _ => span.add_tile::<MAX_TOKENS>(these, cols, &mut tables, &mut sums[first..], rows),
            }
            (q, out) = (rest, others);
        }
    }
}

/// A chunk of columns of the rows of a span.
struct Span<'a> {
    bands: &'a [[WeightTile; CHUNK_TILES]; SPAN / BAND],
    /// The weight tiles of the chunk, counted from the start of the row.
    tiles: Range<usize>,
    rows: usize,
}

impl Span<'_> {
    /// Adds the products of a tile of `T` tokens, `q`: `[T, cols]`, to `out`: its row 0 is the first of the span,
    /// and tokens are `rows` apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn add_tile<const T: usize>(
        &self,
        q: &[i8],
        cols: usize,
        tables: &mut [ActivationTables; CHUNK_TILES],
        out: &mut [i32],
        rows: usize,
    ) {
        for (tile, tables) in self.tiles.clone().zip(&mut *tables) {
            build_tables(q, cols, tile, tables);
        }
        let (whole, left) = (self.rows / BAND, self.rows % BAND);
        add_bands::<T>(&self.bands[..whole], self.tiles.len(), tables, out, rows);
        if left > 0 {
            let band = &self.bands[whole..=whole];
            add_partial_band::<T>(band, self.tiles.len(), tables, &mut out[whole * BAND..], rows, left);
        }
    }
}

/// Adds the first `tiles` weight tiles of each band for a tile of tokens: `out[t * rows + r]` for 32 rows of each
/// band.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_bands<const T: usize>(
    bands: &[[WeightTile; CHUNK_TILES]],
    tiles: usize,
    tables: &[ActivationTables; CHUNK_TILES],
    out: &mut [i32],
    rows: usize,
) {
    if T == MAX_TOKENS {
        return gemm_lut_asm::add_bands(bands, tiles, tables, out, rows);
    }
    for (at, band) in bands.iter().enumerate() {
        add_band::<T>(&band[..tiles], tables, &mut out[at * BAND..], rows);
    }
}

/// Adds a band with fewer than 32 rows; the sums of the missing rows are dropped.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_partial_band<const T: usize>(
    band: &[[WeightTile; CHUNK_TILES]],
    tiles: usize,
    tables: &[ActivationTables; CHUNK_TILES],
    out: &mut [i32],
    rows: usize,
    left: usize,
) {
    let mut sums = [[0; BAND]; T];
    add_bands::<T>(band, tiles, tables, sums.as_flattened_mut(), BAND);
    for (token, sums) in sums.iter().enumerate() {
        let out = &mut out[token * rows..][..left];
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
    }
}

/// Adds the weight tiles of one band for a tile of tokens: `out[t * rows + r]` for 32 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline(never)]
fn add_band<const T: usize>(
    band: &[WeightTile],
    tables: &[ActivationTables; CHUNK_TILES],
    out: &mut [i32],
    rows: usize,
) {
    let mut long = [[_mm512_setzero_si512(); 2]; T];
    let mut short = [_mm512_setzero_si512(); T];
    for (tile, tables) in band.iter().zip(tables) {
        let [first, second] = tile.lut_indices.each_ref().map(|indices| load(indices));
        let indices = [first, _mm512_srli_epi16::<8>(first), second, _mm512_srli_epi16::<8>(second)];
        for (at, (indices, codes)) in indices.into_iter().zip(&tile.dot_codes).enumerate() {
            let (a, b) = (load(&codes[0]), load(&codes[1]));
            for token in 0..T {
                let q =
                    _mm512_set1_epi32(i32::from_le_bytes(tables.dot_activations[token][at].map(|q| q as u8)));
                let [low, high] = &mut long[token];
                *low = _mm512_dpbusd_epi32(*low, a, q);
                let sums = _mm512_permutexvar_epi16(indices, load(&tables.sums[at][token]));
                short[token] = _mm512_add_epi16(short[token], sums);
                *high = _mm512_dpbusd_epi32(*high, b, q);
            }
        }
        let (a, b) = (load(&tile.dot_codes[4][0]), load(&tile.dot_codes[4][1]));
        for ([low, high], activations) in long.iter_mut().zip(&tables.dot_activations) {
            let q = _mm512_set1_epi32(i32::from_le_bytes(activations[4].map(|q| q as u8)));
            *low = _mm512_dpbusd_epi32(*low, a, q);
            *high = _mm512_dpbusd_epi32(*high, b, q);
        }
    }
    // A 16-bit sum of a row of the first half stands before one of the second half.
    for (token, ([low, high], short)) in long.into_iter().zip(short).enumerate() {
        let out = out[token * rows..][..BAND].as_chunks_mut::<16>().0;
        let was = [load(&out[0]), load(&out[1])];
        let first = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(short));
        store(&mut out[0], _mm512_add_epi32(was[0], _mm512_add_epi32(low, first)));
        store(&mut out[1], _mm512_add_epi32(was[1], _mm512_add_epi32(high, _mm512_srai_epi32::<16>(short))));
    }
}

/// Transposes weight tiles `start..start + band.len()`, an even number, of at most 32 rows; missing rows are copies
/// of the last.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline(never)]
fn transpose(weights: &[u8], width: usize, start: usize, ahead: usize, band: &mut [WeightTile]) {
    let last = weights.len() / width - 1;
    let mut rows: [&[[u8; 2 * TILE_BYTES]]; BAND] = [&[]; BAND];
    for (row, part) in rows.iter_mut().enumerate() {
        let row = &weights[row.min(last) * width..][..width];
        *part = row[start * TILE_BYTES..][..band.len() * TILE_BYTES].as_chunks().0;
        // Prefetches what is transposed next, which lies in lines too far apart for the hardware prefetcher.
        let next = row.as_ptr().wrapping_add(start * TILE_BYTES + ahead + CHUNK_TILES * TILE_BYTES - 1);
        _mm_prefetch::<_MM_HINT_T1>(next.cast());
    }
    for (at, tiles) in band.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let low = transpose_quarters(std::array::from_fn(|row| &rows[row][at]));
        let high = transpose_quarters(std::array::from_fn(|row| &rows[BAND / 2 + row][at]));
        split_codes([low[0], high[0]], [low[1], high[1]], &mut tiles[0]);
        split_codes([low[2], high[2]], [low[3], high[3]], &mut tiles[1]);
    }
}

/// Transposes 16 bytes of 16 rows into four registers with four bytes of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn transpose_quarters(rows: [&[u8; 2 * TILE_BYTES]; BAND / 2]) -> [__m512i; 4] {
    // Rows r, r + 4, r + 8 and r + 12, so that the rows end up in order.
    let [a, b, c, d] = std::array::from_fn(|row| {
        // SAFETY: 16 bytes each; the loads need no alignment.
        let part = |at: usize| unsafe { _mm_loadu_si128(rows[row + 4 * at].as_ptr().cast()) };
        let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(part(0)), part(1));
        let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(part(2)), part(3));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    });
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (first, second) = (_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [first, second, _mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)]
}

/// Splits the codes of a weight tile: those of its first four bytes and of its second four, for both halves of the
/// rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn split_codes(first: [__m512i; 2], second: [__m512i; 2], tile: &mut WeightTile) {
    let codes = |x| _mm512_and_si512(x, _mm512_set1_epi8(3));
    for (half, (first, second)) in first.into_iter().zip(second).enumerate() {
        store(&mut tile.dot_codes[0][half], codes(_mm512_srli_epi32::<6>(first)));
        store(&mut tile.dot_codes[1][half], codes(_mm512_srli_epi32::<6>(second)));
        store(&mut tile.dot_codes[2][half], codes(_mm512_srli_epi32::<4>(second)));
        store(&mut tile.dot_codes[3][half], codes(_mm512_srli_epi32::<2>(second)));
        store(&mut tile.dot_codes[4][half], codes(second));
    }
    // Two bytes of a row of the first half, then the same of one of the second half.
    let [a, b] = first.map(|x| base3_index(x));
    let low = _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b));
    let high = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(a), b);
    for (indices, pair) in tile.lut_indices.iter_mut().zip([low, high]) {
        store(indices, pair);
    }
}

/// The number `9 a + 3 b + c` of codes 1, 2, 3 of each byte, whose lower bits hold `16 a + 4 b + c`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn base3_index(bytes: __m512i) -> __m512i {
    let only = |x, mask| _mm512_and_si512(x, _mm512_set1_epi8(mask));
    let x = only(bytes, 0x3f);
    let (a, ab) = (only(_mm512_srli_epi16::<4>(x), 0x03), only(_mm512_srli_epi16::<2>(x), 0x0f));
    // Subtracts 4 a + b and 3 a.
    let three = _mm512_add_epi8(a, _mm512_add_epi8(a, a));
    _mm512_sub_epi8(_mm512_sub_epi8(x, ab), three)
}

/// The codes of each number from 0 to 26, for `vpdpbusd`: a 0 for the highest column of a byte, then its three
/// codes. In two registers, from which `vpackssdw` takes four numbers each in turn.
const CODES: [[[u8; 4]; 16]; 2] = {
    let mut codes = [[[0; 4]; 16]; 2];
    let mut at = 0;
    while at < 27 {
        let place = at / 8 * 4 + at % 4;
        codes[at / 4 % 2][place] = [0, (at / 9) as u8, (at / 3 % 3) as u8, (at % 3) as u8];
        at += 1;
    }
    codes
};

/// Builds the tables and the activations of weight tile `tile` for a tile of tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline(never)]
fn build_tables(q: &[i8], cols: usize, tile: usize, tables: &mut ActivationTables) {
    let codes = [load(&CODES[0]), load(&CODES[1])];
    let at = tile * TILE_BYTES / BLOCK_BYTES * BLOCK + tile * TILE_BYTES % BLOCK_BYTES;
    // Brings byte b of all groups together, the first group first.
    let indices = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (token, q) in q.chunks_exact(cols).enumerate() {
        let q = q[at..][..3 * BLOCK_BYTES + TILE_BYTES].first_chunk().expect("just cut");
        let [first, second] = split_groups(q);
        tables.dot_activations[token][0] = [q[0], q[1], q[2], q[3]];
        let lines = &mut tables.dot_activations[token].as_flattened_mut()[4..];
        store_16(lines.first_chunk_mut().expect("four quads"), second);
        let first = _mm_shuffle_epi8(first, indices);
        let bytes = [
            _mm512_broadcastd_epi32(first),
            _mm512_broadcastd_epi32(_mm_shuffle_epi32::<1>(first)),
            _mm512_broadcastd_epi32(_mm_shuffle_epi32::<2>(first)),
            _mm512_broadcastd_epi32(_mm_shuffle_epi32::<3>(first)),
        ];
        for (table, q) in tables.sums.iter_mut().zip(bytes) {
            let [a, b] = codes.map(|codes| _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, q));
            store(&mut table[token], _mm512_packs_epi32(a, b));
        }
    }
}

/// The first four columns of each group of a weight tile, and the second four.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn split_groups(q: &[i8; 3 * BLOCK_BYTES + TILE_BYTES]) -> [__m128i; 2] {
    let group = |at: usize| {
        // SAFETY: eight bytes within the array, as the three groups before it are 32 each.
        unsafe { _mm_loadl_epi64(q.as_ptr().add(at * BLOCK_BYTES).cast()) }
    };
    let (low, high) = (_mm_unpacklo_epi32(group(0), group(1)), _mm_unpacklo_epi32(group(2), group(3)));
    [_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high)]
}

#[target_feature(enable = "avx512f")]
fn store_16(to: &mut [i8; 16], x: __m128i) {
    // SAFETY: 16 bytes; the store needs no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), x) }
}

/// Loads an array of 64 bytes.
#[target_feature(enable = "avx512f")]
fn load<X, const N: usize>(from: &[X; N]) -> __m512i {
    const { assert!(size_of::<[X; N]>() == 64) };
    // SAFETY: 64 bytes of plain numbers; the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn store<X: Copy, const N: usize>(to: &mut [X; N], x: __m512i) {
    const { assert!(size_of::<[X; N]>() == 64) };
    // SAFETY: 64 bytes of plain integers, for which any bits are a value; the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
}
