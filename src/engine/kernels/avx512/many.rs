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
//! Tried, in GMAC/s for 512 rows of 2560 and 126 tokens, where the tile alone has 193 and this 261: tiles of
//! 7 or 8 tokens, whose sums the compiler no longer keeps in registers, a few less than 6; tables of 32 tokens
//! in memory, a row's number being the address, 200, and 211 with `vpdpbusd` beside it in one loop, not in
//! assembly.

use crate::engine::kernels::Many;
use crate::engine::quant::{BLOCK, BLOCK_BYTES, packed_row};
use std::arch::x86_64::*;
use std::ops::Range;

/// The most tokens of a tile: the sums of each take two registers of 32-bit numbers and one of 16-bit ones.
const MOST: usize = 6;
/// From so many tokens on it is worth turning weights, from so many rows on making tables (GMAC/s for rows
/// of 2560, Zen 4, the tile alone 193: 512 rows, 24 tokens 201, 32 tokens 221, 64 242, 126 261; 128 tokens,
/// 80 rows 165, 160 rows 231).
pub(super) const MANY: Many = Many { tokens: 24, rows: 112, kernel: many };
/// Rows side by side in a register of 16-bit numbers.
const BAND: usize = 32;
/// Rows that share the tables of a chunk: 16 bands, which fill 140 KB.
const SPAN: usize = 16 * BAND;
/// Bytes of a row that make a unit: 32 columns.
const UNIT: usize = 8;
/// Units of a chunk: as many as can be added up in 16 bits. A look gives at most 3 codes of 2 times an int8
/// of -128, and a unit has four: 40 times 768 is 30,720.
const UNITS: usize = 10;

/// A unit of 32 rows. Bytes 0 to 3 give the numbers of three codes each (not the highest), and together a
/// quad of their highest codes; bytes 4 to 7 are a quad each.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Unit {
    looks: [[u16; BAND]; 4],
    quads: [[[u8; 64]; 2]; 5], // [quad][half of the rows][row, code], the lowest code of a byte first
}

/// What a tile of tokens meets a unit with.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Met {
    tables: [[[i16; 32]; MOST]; 4], // sums of codes 1, 2, 3 of a byte with the token's int8
    quads: [[[i8; 4]; 5]; MOST],    // int8 in the order of the quads' codes
}

/// Tokens of the next tile, of so many left: six, or at the end five and four, so that each is at least
/// four. Eight or more are left at first.
fn next_tile(left: usize) -> usize {
    match left {
        9 | 13 => 5,
        8 => 4,
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
        for (at, band) in self.bands[..whole].iter().enumerate() {
            add_band::<T>(&band[..self.units.len()], met, &mut out[at * BAND..], rows);
        }
        if left > 0 {
            let band = &self.bands[whole][..self.units.len()];
            add_rest::<T>(band, met, &mut out[whole * BAND..], rows, left);
        }
    }
}

/// A band that is not whole: its rows beyond the last are nobody's.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add_rest<const T: usize>(band: &[Unit], met: &[Met; UNITS], out: &mut [i32], rows: usize, left: usize) {
    let mut sums = [[0; BAND]; T];
    add_band::<T>(band, met, sums.as_flattened_mut(), BAND);
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
        for (at, looks) in unit.looks.iter().enumerate() {
            let (looks, quad) = (load(looks), &unit.quads[at]);
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
    for (token, ([low, high], short)) in long.into_iter().zip(short).enumerate() {
        let halves = [_mm512_castsi512_si256(short), _mm512_extracti64x4_epi64::<1>(short)];
        let out = out[token * rows..][..BAND].as_chunks_mut::<16>().0;
        for ((out, half), long) in out.iter_mut().zip(halves).zip([low, high]) {
            let sum = _mm512_add_epi32(load(out), _mm512_add_epi32(long, _mm512_cvtepi16_epi32(half)));
            store(out, sum);
        }
    }
}

/// Turns units `start..start + band.len()` of at most 32 rows; rows beyond the last are copies of it.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline(never)]
fn turn(weights: &[u8], width: usize, start: usize, ahead: usize, band: &mut [Unit]) {
    let last = weights.len() / width - 1;
    let rows: [&[[u8; UNIT]]; BAND] = std::array::from_fn(|row| {
        let row = &weights[row.min(last) * width..][..width];
        &row.as_chunks::<UNIT>().0[start..start + band.len()]
    });
    for row in rows {
        fetch(row.as_flattened(), ahead);
    }
    for (at, unit) in band.iter_mut().enumerate() {
        let bytes = columns(&std::array::from_fn(|row| i64::from_le_bytes(rows[row][at])));
        for (looks, bytes) in unit.looks.iter_mut().zip(bytes) {
            store(looks, number(bytes));
        }
        let quads =
            [highest([bytes[0], bytes[1], bytes[2], bytes[3]]), bytes[4], bytes[5], bytes[6], bytes[7]];
        for (quad, bytes) in unit.quads.iter_mut().zip(quads) {
            store(&mut quad[0], spread(_mm256_castsi256_si128(bytes)));
            store(&mut quad[1], spread(_mm256_extracti128_si256::<1>(bytes)));
        }
    }
}

/// Asks for what is turned next, so many bytes behind a part of a row: no processor guesses this from lines
/// so far apart.
#[target_feature(enable = "avx512f")]
fn fetch(part: &[u8], ahead: usize) {
    for line in 0..2 {
        let next = part.as_ptr().wrapping_add(ahead + 64 * line);
        _mm_prefetch::<_MM_HINT_T1>(next.cast());
    }
}

/// Eight bytes of 32 rows to eight registers of one byte of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn columns(rows: &[i64; BAND]) -> [__m256i; UNIT] {
    let pairs = _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    let pairs = _mm256_broadcastsi128_si256(pairs);
    let fours = rows.as_chunks::<4>().0;
    // Byte b of rows 4 i to 4 i + 3 is 32-bit number b of register i, once lanes are in order.
    let x: [__m256i; 8] = std::array::from_fn(|i| {
        let [a, b, c, d] = fours[i];
        let x = _mm256_shuffle_epi8(_mm256_setr_epi64x(a, b, c, d), pairs);
        let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        let [low, high] = [_mm_unpacklo_epi16(low, high), _mm_unpackhi_epi16(low, high)];
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
    });
    // The usual transposition of 8 times 8 numbers of 32 bits.
    let x: [__m256i; 8] = std::array::from_fn(|i| match i % 2 {
        0 => _mm256_unpacklo_epi32(x[i], x[i + 1]),
        _ => _mm256_unpackhi_epi32(x[i - 1], x[i]),
    });
    let x: [__m256i; 8] = std::array::from_fn(|i| {
        let (a, b) = (x[i / 4 * 4 + i % 4 / 2], x[i / 4 * 4 + i % 4 / 2 + 2]);
        if i % 2 == 0 { _mm256_unpacklo_epi64(a, b) } else { _mm256_unpackhi_epi64(a, b) }
    });
    std::array::from_fn(|i| match i / 4 {
        0 => _mm256_permute2x128_si256::<0x20>(x[i], x[i + 4]),
        _ => _mm256_permute2x128_si256::<0x31>(x[i - 4], x[i]),
    })
}

/// The number `9 a + 3 b + c` of codes 1, 2, 3 of each byte: `16 a + 4 b + c` is what its lower bits say.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn number(bytes: __m256i) -> __m512i {
    let x = _mm512_and_si512(_mm512_cvtepu8_epi16(bytes), _mm512_set1_epi16(0x3f));
    let (a, ab) = (_mm512_srli_epi16::<4>(x), _mm512_srli_epi16::<2>(x));
    // 4 a + b and 3 a taken away.
    let three = _mm512_add_epi16(a, _mm512_add_epi16(a, a));
    _mm512_sub_epi16(_mm512_sub_epi16(x, ab), three)
}

/// The highest codes of four bytes, as one byte: that of the first lowest.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn highest(bytes: [__m256i; 4]) -> __m256i {
    let [a, b, c, d] = bytes;
    let only = |x, mask: u8| _mm256_and_si256(x, _mm256_set1_epi8(mask as i8));
    let low = _mm256_or_si256(only(_mm256_srli_epi16::<6>(a), 0x03), only(_mm256_srli_epi16::<4>(b), 0x0c));
    let high = _mm256_or_si256(only(_mm256_srli_epi16::<2>(c), 0x30), only(d, 0xc0));
    _mm256_or_si256(low, high)
}

/// The four codes of each of 16 bytes as a byte each, the lowest first.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn spread(bytes: __m128i) -> __m512i {
    let x = _mm512_cvtepu8_epi32(bytes);
    // No two of these put bits where the mask keeps some.
    let x = _mm512_or_si512(x, _mm512_slli_epi32::<12>(x));
    _mm512_and_si512(_mm512_or_si512(x, _mm512_slli_epi32::<6>(x)), _mm512_set1_epi8(3))
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
    // Byte b of each group goes together: for looks the first group first, and for quads the last.
    let looks = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let quads = _mm_setr_epi8(12, 8, 4, 0, 13, 9, 5, 1, 14, 10, 6, 2, 15, 11, 7, 3);
    for (token, q) in q.chunks_exact(cols).enumerate() {
        let q = q[at..][..3 * BLOCK_BYTES + UNIT].first_chunk().expect("just cut");
        let [first, second] = groups(q);
        met.quads[token][0] = [q[0], q[1], q[2], q[3]];
        let lines = &mut met.quads[token].as_flattened_mut()[4..];
        store_quads(lines.first_chunk_mut().expect("four quads"), _mm_shuffle_epi8(second, quads));
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
