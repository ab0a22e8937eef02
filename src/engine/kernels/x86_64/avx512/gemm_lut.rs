//! Many tokens at a time: three columns by one look into a register of sums made before.
//!
//! One `vpdpbusd` a cycle is 64 products, and nothing multiplies more. But three codes have only 27 sums
//! with the three int8 of a token; as 16-bit numbers they are one register, and `vpermw` looks them up for
//! 32 rows: 96 products in one look and one addition, for which `vpdpbusd` leaves the units free. So of
//! eight bytes of a row four go one way and four the other, at the same time.
//!
//! Both want rows side by side in a register: weights are turned a chunk of columns at a time and used for
//! all tokens, sums are made for all rows of a span. The three steps are functions of their own, never
//! inlined: together the compiler keeps none of them in registers.
//! Tiles of eight tokens are in assembly (`gemm_lut_asm.rs`), the others, of what is left over, are not.
//! Tried, in GMAC/s for 512 rows of 2560 and 126 tokens, where the tile alone has 193 and this had 261: tables of
//! 32 tokens in memory, a row's number being the address, 200, and 211 with `vpdpbusd` beside it in one loop, not in
//! assembly.

use super::gemm_lut_asm;
use super::lut_layout::{ActivationTables, BAND, CHUNK_TILES, MAX_TOKENS, WeightTile};
use crate::engine::kernels::BatchKernel;
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;
use std::ops::Range;

/// From so many tokens on it is worth turning weights, from so many rows on making tables (GMAC/s for rows
/// of 2560, Zen 4, the tile alone 193: 640 rows, 18 tokens 212, 32 tokens 236, 128 275; 128 tokens, 160 rows 237, 768
/// rows 289; 80 rows 165 before weights were turned faster).
pub(super) const BATCH: BatchKernel = BatchKernel { min_tokens: 24, min_rows: 112, kernel: gemm_lut };
/// Rows that share the tables of a chunk: 28 bands fill 172 KB, and leave the sums of all tokens room in a second
/// cache of 1 MB. (`tests/bench/RESULTS.md` has what others gave.)
const SPAN: usize = 28 * BAND;
/// Bytes of a row that make a unit: 32 columns.
const TILE_BYTES: usize = 8;
/// Tokens of the next tile, of so many left: eight, or at the end six, five and four. Eight or more are left at first.
fn next_tile(left: usize) -> usize {
    match left {
        9 => 5,
        10 | 11 | 15 => 6,
        _ => left.min(MAX_TOKENS),
    }
}

/// All rows for eight tokens or more.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn gemm_lut(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
    let (width, rows) = (packed_row(cols), out.len() / (q.len() / cols));
    out.fill(0);
    for first in (0..rows).step_by(SPAN) {
        let last = (first + SPAN).min(rows);
        add_span(&weights[first * width..last * width], q, cols, first, out);
    }
}

/// The rows of one span, of which the first has index `first` in `out`: `[tokens, rows]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_span(weights: &[u8], q: &[i8], cols: usize, first: usize, out: &mut [i32]) {
    let (width, rows) = (packed_row(cols), out.len() / (q.len() / cols));
    // SAFETY: integers, for which zeros are a value.
    let mut bands: [[WeightTile; CHUNK_TILES]; SPAN / BAND] = unsafe { std::mem::zeroed() };
    // SAFETY: the same.
    let mut tables: [ActivationTables; CHUNK_TILES] = unsafe { std::mem::zeroed() };
    for start in (0..width / TILE_BYTES).step_by(CHUNK_TILES) {
        let tiles = CHUNK_TILES.min(width / TILE_BYTES - start);
        // What is turned next: the columns behind these, at last the rows behind these.
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
    /// Of all units of a row.
    tiles: Range<usize>,
    rows: usize,
}

impl Span<'_> {
    /// Adds a tile of `T` tokens, `q`: `[T, cols]`, to `out`: its row 0 is the first of the span, and
    /// tokens are `rows` apart.
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

/// Adds the first `units` units of bands for the tokens of a tile: `out[t * rows + r]` for 32 rows of each.
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

/// A band that is not whole: its rows beyond the last are nobody's.
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

/// Adds the units of one band for the tokens of a tile: `out[t * rows + r]` for 32 rows.
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
    // A 16-bit sum of a row of the first half stands before one of the second.
    for (token, ([low, high], short)) in long.into_iter().zip(short).enumerate() {
        let out = out[token * rows..][..BAND].as_chunks_mut::<16>().0;
        let was = [load(&out[0]), load(&out[1])];
        let first = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(short));
        store(&mut out[0], _mm512_add_epi32(was[0], _mm512_add_epi32(low, first)));
        store(&mut out[1], _mm512_add_epi32(was[1], _mm512_add_epi32(high, _mm512_srai_epi32::<16>(short))));
    }
}

/// Turns units `start..start + band.len()`, an even number, of at most 32 rows; rows beyond the last are copies of it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline(never)]
fn transpose(weights: &[u8], width: usize, start: usize, ahead: usize, band: &mut [WeightTile]) {
    let last = weights.len() / width - 1;
    let mut rows: [&[[u8; 2 * TILE_BYTES]]; BAND] = [&[]; BAND];
    for (row, part) in rows.iter_mut().enumerate() {
        let row = &weights[row.min(last) * width..][..width];
        *part = row[start * TILE_BYTES..][..band.len() * TILE_BYTES].as_chunks().0;
        // What is turned next, so many bytes behind: no processor guesses this from lines so far apart.
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

/// Sixteen bytes of 16 rows to four registers of four bytes of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn transpose_quarters(rows: [&[u8; 2 * TILE_BYTES]; BAND / 2]) -> [__m512i; 4] {
    // Rows r, r + 4, r + 8 and r + 12, so that they stand in order at last.
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

/// A unit of its first and its second four bytes, of both halves of the rows.
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
    // Two bytes of a row of the first half, then the same of one of the second.
    let [a, b] = first.map(|x| base3_index(x));
    let low = _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b));
    let high = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(a), b);
    for (indices, pair) in tile.lut_indices.iter_mut().zip([low, high]) {
        store(indices, pair);
    }
}

/// The number `9 a + 3 b + c` of codes 1, 2, 3 of each byte: `16 a + 4 b + c` is what its lower bits say.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn base3_index(bytes: __m512i) -> __m512i {
    let only = |x, mask| _mm512_and_si512(x, _mm512_set1_epi8(mask));
    let x = only(bytes, 0x3f);
    let (a, ab) = (only(_mm512_srli_epi16::<4>(x), 0x03), only(_mm512_srli_epi16::<2>(x), 0x0f));
    // 4 a + b and 3 a taken away.
    let three = _mm512_add_epi8(a, _mm512_add_epi8(a, a));
    _mm512_sub_epi8(_mm512_sub_epi8(x, ab), three)
}

/// Codes of each number from 0 to 26, for `vpdpbusd`: none for the highest column of a byte, then its three. In two
/// registers, of which `vpackssdw` takes four numbers each in turn.
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

/// Tables and quads of unit `unit` for the tokens of a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline(never)]
fn build_tables(q: &[i8], cols: usize, tile: usize, tables: &mut ActivationTables) {
    let codes = [load(&CODES[0]), load(&CODES[1])];
    let at = tile * TILE_BYTES / BLOCK_BYTES * BLOCK + tile * TILE_BYTES % BLOCK_BYTES;
    // Byte b of each group goes together, the first group first.
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

/// The first four columns of each group of a unit, and the second four.
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

/// An array of 64 bytes.
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
