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
use super::lut_layout::{BAND, MOST, Met, UNITS, Unit};
use crate::engine::kernels::Many;
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;
use std::ops::Range;

/// From so many tokens on it is worth turning weights, from so many rows on making tables (GMAC/s for rows
/// of 2560, Zen 4, the tile alone 193: 640 rows, 18 tokens 212, 32 tokens 236, 128 275; 128 tokens, 160 rows 237, 768
/// rows 289; 80 rows 165 before weights were turned faster).
pub(super) const MANY: Many = Many { tokens: 24, rows: 112, kernel: many };
/// Rows that share the tables of a chunk: 28 bands fill 172 KB, and leave the sums of all tokens room in a second
/// cache of 1 MB. (`tests/bench/RESULTS.md` has what others gave.)
const SPAN: usize = 28 * BAND;
/// Bytes of a row that make a unit: 32 columns.
const UNIT: usize = 8;
/// Tokens of the next tile, of so many left: eight, or at the end six, five and four. Eight or more are left at first.
fn next_tile(left: usize) -> usize {
    match left {
        9 => 5,
        10 | 11 | 15 => 6,
        _ => left.min(MOST),
    }
}

/// All rows for eight tokens or more.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn many(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]) {
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
    let mut bands: [[Unit; UNITS]; SPAN / BAND] = unsafe { std::mem::zeroed() };
    // SAFETY: the same.
    let mut met: [Met; UNITS] = unsafe { std::mem::zeroed() };
    for start in (0..width / UNIT).step_by(UNITS) {
        let units = UNITS.min(width / UNIT - start);
        // What is turned next: the columns behind these, at last the rows behind these.
        let is_last = start + units == width / UNIT;
        let ahead = if is_last { weights.len() - start * UNIT } else { units * UNIT };
        for (weights, band) in weights.chunks(BAND * width).zip(&mut bands) {
            turn(weights, width, start, ahead, &mut band[..units]);
        }
        let span = Span { bands: &bands, units: start..start + units, rows: weights.len() / width };
        let (mut q, mut out) = (q, &mut *out);
        while !q.is_empty() {
            let tokens = next_tile(q.len() / cols);
            let (these, rest) = q.split_at(tokens * cols);
            let (sums, others) = out.split_at_mut(tokens * rows);
            match tokens {
                4 => span.add_tile::<4>(these, cols, &mut met, &mut sums[first..], rows),
                5 => span.add_tile::<5>(these, cols, &mut met, &mut sums[first..], rows),
                6 => span.add_tile::<6>(these, cols, &mut met, &mut sums[first..], rows),
                _ => span.add_tile::<MOST>(these, cols, &mut met, &mut sums[first..], rows),
            }
            (q, out) = (rest, others);
        }
    }
}

/// A chunk of columns of the rows of a span.
struct Span<'a> {
    bands: &'a [[Unit; UNITS]; SPAN / BAND],
    /// Of all units of a row.
    units: Range<usize>,
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
        met: &mut [Met; UNITS],
        out: &mut [i32],
        rows: usize,
    ) {
        for (unit, met) in self.units.clone().zip(&mut *met) {
            meet(q, cols, unit, met);
        }
        let (whole, left) = (self.rows / BAND, self.rows % BAND);
        add_bands::<T>(&self.bands[..whole], self.units.len(), met, out, rows);
        if left > 0 {
            let band = &self.bands[whole..=whole];
            add_rest::<T>(band, self.units.len(), met, &mut out[whole * BAND..], rows, left);
        }
    }
}

/// Adds the first `units` units of bands for the tokens of a tile: `out[t * rows + r]` for 32 rows of each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_bands<const T: usize>(
    bands: &[[Unit; UNITS]],
    units: usize,
    met: &[Met; UNITS],
    out: &mut [i32],
    rows: usize,
) {
    if T == MOST {
        return gemm_lut_asm::add_bands(bands, units, met, out, rows);
    }
    for (at, band) in bands.iter().enumerate() {
        add_band::<T>(&band[..units], met, &mut out[at * BAND..], rows);
    }
}

/// A band that is not whole: its rows beyond the last are nobody's.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_rest<const T: usize>(
    band: &[[Unit; UNITS]],
    units: usize,
    met: &[Met; UNITS],
    out: &mut [i32],
    rows: usize,
    left: usize,
) {
    let mut sums = [[0; BAND]; T];
    add_bands::<T>(band, units, met, sums.as_flattened_mut(), BAND);
    for (token, sums) in sums.iter().enumerate() {
        let out = &mut out[token * rows..][..left];
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
    }
}

/// Adds the units of one band for the tokens of a tile: `out[t * rows + r]` for 32 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[inline(never)]
fn add_band<const T: usize>(band: &[Unit], met: &[Met; UNITS], out: &mut [i32], rows: usize) {
    let mut long = [[_mm512_setzero_si512(); 2]; T];
    let mut short = [_mm512_setzero_si512(); T];
    for (unit, met) in band.iter().zip(met) {
        let [first, second] = unit.looks.each_ref().map(|looks| load(looks));
        let looks = [first, _mm512_srli_epi16::<8>(first), second, _mm512_srli_epi16::<8>(second)];
        for (at, (looks, quad)) in looks.into_iter().zip(&unit.quads).enumerate() {
            let (a, b) = (load(&quad[0]), load(&quad[1]));
            for token in 0..T {
                let q = _mm512_set1_epi32(i32::from_le_bytes(met.quads[token][at].map(|q| q as u8)));
                let [low, high] = &mut long[token];
                *low = _mm512_dpbusd_epi32(*low, a, q);
                let sums = _mm512_permutexvar_epi16(looks, load(&met.tables[at][token]));
                short[token] = _mm512_add_epi16(short[token], sums);
                *high = _mm512_dpbusd_epi32(*high, b, q);
            }
        }
        let (a, b) = (load(&unit.quads[4][0]), load(&unit.quads[4][1]));
        for ([low, high], quads) in long.iter_mut().zip(&met.quads) {
            let q = _mm512_set1_epi32(i32::from_le_bytes(quads[4].map(|q| q as u8)));
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
fn turn(weights: &[u8], width: usize, start: usize, ahead: usize, band: &mut [Unit]) {
    let last = weights.len() / width - 1;
    let mut rows: [&[[u8; 2 * UNIT]]; BAND] = [&[]; BAND];
    for (row, part) in rows.iter_mut().enumerate() {
        let row = &weights[row.min(last) * width..][..width];
        *part = row[start * UNIT..][..band.len() * UNIT].as_chunks().0;
        // What is turned next, so many bytes behind: no processor guesses this from lines so far apart.
        let next = row.as_ptr().wrapping_add(start * UNIT + ahead + UNITS * UNIT - 1);
        _mm_prefetch::<_MM_HINT_T1>(next.cast());
    }
    for (at, units) in band.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let low = quarters(std::array::from_fn(|row| &rows[row][at]));
        let high = quarters(std::array::from_fn(|row| &rows[BAND / 2 + row][at]));
        cut([low[0], high[0]], [low[1], high[1]], &mut units[0]);
        cut([low[2], high[2]], [low[3], high[3]], &mut units[1]);
    }
}

/// Sixteen bytes of 16 rows to four registers of four bytes of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn quarters(rows: [&[u8; 2 * UNIT]; BAND / 2]) -> [__m512i; 4] {
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
fn cut(first: [__m512i; 2], second: [__m512i; 2], unit: &mut Unit) {
    let codes = |x| _mm512_and_si512(x, _mm512_set1_epi8(3));
    for (half, (first, second)) in first.into_iter().zip(second).enumerate() {
        store(&mut unit.quads[0][half], codes(_mm512_srli_epi32::<6>(first)));
        store(&mut unit.quads[1][half], codes(_mm512_srli_epi32::<6>(second)));
        store(&mut unit.quads[2][half], codes(_mm512_srli_epi32::<4>(second)));
        store(&mut unit.quads[3][half], codes(_mm512_srli_epi32::<2>(second)));
        store(&mut unit.quads[4][half], codes(second));
    }
    // Two bytes of a row of the first half, then the same of one of the second.
    let [a, b] = first.map(|x| number(x));
    let low = _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b));
    let high = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(a), b);
    for (looks, pair) in unit.looks.iter_mut().zip([low, high]) {
        store(looks, pair);
    }
}

/// The number `9 a + 3 b + c` of codes 1, 2, 3 of each byte: `16 a + 4 b + c` is what its lower bits say.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn number(bytes: __m512i) -> __m512i {
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
fn meet(q: &[i8], cols: usize, unit: usize, met: &mut Met) {
    let codes = [load(&CODES[0]), load(&CODES[1])];
    let at = unit * UNIT / BLOCK_BYTES * BLOCK + unit * UNIT % BLOCK_BYTES;
    // Byte b of each group goes together, the first group first.
    let looks = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (token, q) in q.chunks_exact(cols).enumerate() {
        let q = q[at..][..3 * BLOCK_BYTES + UNIT].first_chunk().expect("just cut");
        let [first, second] = groups(q);
        met.quads[token][0] = [q[0], q[1], q[2], q[3]];
        let lines = &mut met.quads[token].as_flattened_mut()[4..];
        store_quads(lines.first_chunk_mut().expect("four quads"), second);
        let first = _mm_shuffle_epi8(first, looks);
        let bytes = [
            _mm512_broadcastd_epi32(first),
            _mm512_broadcastd_epi32(_mm_shuffle_epi32::<1>(first)),
            _mm512_broadcastd_epi32(_mm_shuffle_epi32::<2>(first)),
            _mm512_broadcastd_epi32(_mm_shuffle_epi32::<3>(first)),
        ];
        for (tables, q) in met.tables.iter_mut().zip(bytes) {
            let [a, b] = codes.map(|codes| _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, q));
            store(&mut tables[token], _mm512_packs_epi32(a, b));
        }
    }
}

/// The first four columns of each group of a unit, and the second four.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn groups(q: &[i8; 3 * BLOCK_BYTES + UNIT]) -> [__m128i; 2] {
    let group = |at: usize| {
        // SAFETY: eight bytes within the array, as the three groups before it are 32 each.
        unsafe { _mm_loadl_epi64(q.as_ptr().add(at * BLOCK_BYTES).cast()) }
    };
    let (low, high) = (_mm_unpacklo_epi32(group(0), group(1)), _mm_unpacklo_epi32(group(2), group(3)));
    [_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high)]
}

#[target_feature(enable = "avx512f")]
fn store_quads(to: &mut [i8; 16], x: __m128i) {
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
