//! The inner loops, one table of them for each kind of processor.
//!
//! [`Kernels`] is a table of function pointers built by [`Kernels::detect`], by
//! [`Kernels::scalar`] or, for tests and benchmarks, by [`Kernels::all`]. Its safe methods check
//! every length and then make one call for a whole range of rows, so that the indirect call costs
//! nothing. Integer results are equal in all tables, always; sums of floats differ by rounding.
//! Deliberately knows no model: matrices, rows, numbers.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod block_quant;
mod prefetch;
mod scalar;
mod self_test;
mod simd_dispatch;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use prefetch::{prefetch, prefetch_first_line};
pub use simd_dispatch::WithSimd;

use super::quant::{BLOCK, BlockFormat, FloatFormat, RowFormat, packed_row};

/// Codes times int8, for a fixed number of tokens:
/// `out[t * rows + r] = sum over c of code(r, c) * q[t * cols + c]`.
type TernaryKernel = unsafe fn(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]);

/// Half-precision rows times a vector: `out[r] = sum over c of rows[r, c] * x[c]`.
type DotF16 = unsafe fn(rows: &[u8], x: &[f32], out: &mut [f32]);
/// Weighted sum of half-precision rows: `out[c] += sum over r of weights[r] * rows[r, c]`.
type WeightedSumF16 = unsafe fn(rows: &[u8], weights: &[f32], out: &mut [f32]);

/// Half-precision rows with some vectors at a time, to the bit as with one after the other.
#[derive(Debug, Clone, Copy)]
struct BatchF16 {
    /// `out[v * rows + r] = sum over c of rows[r, c] * xs[v * cols + c]`.
    dot: unsafe fn(rows: &[u8], xs: &[f32], cols: usize, out: &mut [f32]),
    /// `out[v * cols + c] += sum over r of weights[v * rows + r] * rows[r, c]`.
    weighted_sum: unsafe fn(rows: &[u8], weights: &[f32], cols: usize, out: &mut [f32]),
}

/// Rows of blocks times a vector: `out[r] = sum over c of rows[r, c] * x[c]`.
type DotBlocks = unsafe fn(kind: BlockFormat, rows: &[u8], x: &[f32], out: &mut [f32]);

/// Weighted sum of rows of blocks: `out[c] += sum over r of weights[r] * rows[r, c]`.
type WeightedSumBlocks = unsafe fn(kind: BlockFormat, rows: &[u8], weights: &[f32], out: &mut [f32]);

/// Another way for ternary rows, from some numbers of tokens and rows on.
#[derive(Debug, Clone, Copy)]
struct BatchKernel {
    min_tokens: usize,
    min_rows: usize,
    /// Takes any number of tokens.
    kernel: TernaryKernel,
}

/// The inner loops for one kind of processor.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    name: &'static str,
    batch: Option<BatchKernel>,
    /// Numbers of tokens that share one unpacking of the weights, the most first, 1 last.
    tiles: &'static [(usize, TernaryKernel)],
    dot_f16: DotF16,
    weighted_sum_f16: WeightedSumF16,
    batch_f16: Option<BatchF16>,
    dot_blocks: DotBlocks,
    weighted_sum_blocks: WeightedSumBlocks,
    simd: simd_dispatch::SimdLevel,
}

/// The processor's features that matter here, and whether it has them. The only place that asks.
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    return vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    return vec![
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Vec::new();
}

impl Kernels {
    /// The fastest table this processor runs.
    pub fn detect() -> Self {
        *Self::all().last().expect("scalar runs everywhere")
    }

    /// The reference, in plain Rust.
    pub fn scalar() -> Self {
        scalar::TABLE
    }

    /// Every table this processor runs, the slowest first.
    pub fn all() -> Vec<Self> {
        let features = cpu_features();
        let has = |wanted: &[&str]| wanted.iter().all(|name| features.contains(&(*name, true)));
        let tables: &[(&[&str], Self)] = &[
            (&[], scalar::TABLE),
            #[cfg(target_arch = "x86_64")]
            (&["avx2", "fma", "f16c"], x86_64::avx2::TABLE),
            #[cfg(target_arch = "x86_64")]
            (
                &["avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512vnni"],
                x86_64::avx_vnni::avx512vl::TABLE,
            ),
            #[cfg(target_arch = "x86_64")]
            (&["avx2", "fma", "f16c", "avxvnni"], x86_64::avx_vnni::avx_vnni::TABLE),
            #[cfg(target_arch = "x86_64")]
            (
                &["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni"],
                x86_64::avx512::TABLE,
            ),
            #[cfg(target_arch = "aarch64")]
            (&["neon"], aarch64::neon::TABLE),
            #[cfg(target_arch = "aarch64")]
            (&["neon", "dotprod"], aarch64::neon_dotprod::TABLE),
        ];
        tables.iter().filter(|(wanted, _)| has(wanted)).map(|(_, table)| *table).collect()
    }

    /// The table of a name, where this processor runs it.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|table| table.name == name)
    }

    /// Its name: `scalar`; `avx2`, `avx512vl-vnni`, `avx-vnni`, `avx512-vnni`; `neon`, `neon-dotprod`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Tokens to multiply at a time: whole tiles, eight at least.
    pub fn tile_tokens(&self) -> usize {
        8usize.next_multiple_of(self.tiles[0].0)
    }

    /// Tokens from which on there is a faster way than [`Kernels::tokens`] at a time: all in one call, and
    /// some hundred rows too. It keeps about 190 KB on the stack.
    pub fn batch_min_tokens(&self) -> Option<usize> {
        self.batch.map(|many| many.min_tokens)
    }

    /// Ternary rows times quantised rows.
    ///
    /// For one token codes may be 0 to 3, standing for -1 to 2, where no int8 is beyond 85: the kernels add up in
    /// few bits what codes of 2 and int8 of -128 give at most.
    ///
    /// `weights`: `[rows, packed_row(cols)]`, packed as [`super::quant`] says; `q`:
    /// `[tokens, cols]`, `cols` being whole blocks; `sums`: `[tokens]`, the sum of each row of `q`;
    /// `out`: `[tokens, rows]`.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn ternary_gemm(&self, weights: &[u8], q: &[i8], sums: &[i32], out: &mut [i32]) {
        self.ternary_gemm_codes(weights, q, sums.len(), out);
        // Codes are 0, 1, 2 for -1, 0, 1: one subtraction a row instead of one a weight.
        for (out, sum) in out.chunks_exact_mut((out.len() / sums.len()).max(1)).zip(sums) {
            out.iter_mut().for_each(|dot| *dot -= sum);
        }
    }

    /// The same before the sum of a token is taken away from each of its numbers, for who passes over them anyway:
    /// codes as they are written, 0, 1, 2 for -1, 0, 1.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn ternary_gemm_codes(&self, weights: &[u8], q: &[i8], tokens: usize, out: &mut [i32]) {
        assert!(tokens > 0 && q.len().is_multiple_of(tokens) && out.len().is_multiple_of(tokens));
        let (cols, rows) = (q.len() / tokens, out.len() / tokens);
        assert!(cols > 0 && cols.is_multiple_of(BLOCK) && weights.len() == rows * packed_row(cols));
        // Largest magnitude of a sum: two times 128 a column.
        assert!(cols <= i32::MAX as usize / 256);
        let mut token = 0;
        while token < tokens {
            let (count, kernel) = self.select_kernel(tokens - token, rows);
            let (q, out) = (&q[token * cols..][..count * cols], &mut out[token * rows..][..count * rows]);
            // SAFETY: the table was made for this processor, and the lengths were checked above as
            // the kernels expect them.
            unsafe { kernel(weights, q, cols, out) }
            token += count;
        }
    }

    /// A kernel, and for how many of so many tokens it is.
    fn select_kernel(&self, tokens: usize, rows: usize) -> (usize, TernaryKernel) {
        match self.batch {
            Some(many) if tokens >= many.min_tokens && rows >= many.min_rows => (tokens, many.kernel),
            _ => *self.tiles.iter().find(|(count, _)| *count <= tokens).expect("a table ends with one token"),
        }
    }

    /// Rows of numbers times a vector.
    ///
    /// `rows`: `[out.len(), x.len()]` in format `kind`; `x`: `[cols]`; `out`: `[rows]`. A row's result
    /// does not depend on the rows beside it.
    ///
    /// # Panics
    /// When the lengths do not agree, or rows of blocks are not whole ones.
    pub fn dot(&self, kind: impl Into<RowFormat>, rows: &[u8], x: &[f32], out: &mut [f32]) {
        let kind = kind.into();
        let row = kind.row_bytes(x.len()).expect("rows are whole blocks");
        assert!(!x.is_empty() && rows.len() == out.len() * row);
        match kind {
            // SAFETY: as in `ternary`.
            RowFormat::Float(FloatFormat::F16) => unsafe { (self.dot_f16)(rows, x, out) },
            RowFormat::Float(FloatFormat::F32) => scalar::dot_f32(rows, x, out),
            RowFormat::Float(FloatFormat::Bf16) => scalar::dot_bf16(rows, x, out),
            // SAFETY: as in `ternary`.
            RowFormat::Block(kind) => unsafe { (self.dot_blocks)(kind, rows, x, out) },
        }
    }

    /// Adds rows of numbers, each times its weight, to `out`.
    ///
    /// `rows`: `[weights.len(), out.len()]` in format `kind`; `weights`: `[rows]`; `out`: `[cols]`. Rows are
    /// added in their order.
    ///
    /// # Panics
    /// When the lengths do not agree, or rows of blocks are not whole ones.
    pub fn weighted_sum(&self, kind: impl Into<RowFormat>, rows: &[u8], weights: &[f32], out: &mut [f32]) {
        let kind = kind.into();
        let row = kind.row_bytes(out.len()).expect("rows are whole blocks");
        assert!(!out.is_empty() && rows.len() == weights.len() * row);
        match kind {
            // SAFETY: as in `ternary`.
            RowFormat::Float(FloatFormat::F16) => unsafe { (self.weighted_sum_f16)(rows, weights, out) },
            RowFormat::Float(FloatFormat::F32) => scalar::weighted_sum_f32(rows, weights, out),
            RowFormat::Float(FloatFormat::Bf16) => scalar::weighted_sum_bf16(rows, weights, out),
            // SAFETY: as in `ternary`.
            RowFormat::Block(kind) => unsafe { (self.weighted_sum_blocks)(kind, rows, weights, out) },
        }
    }

    /// Whether rows of a format are read once for some vectors by [`Kernels::dots`] and [`Kernels::mixes`], and not
    /// once for each.
    pub fn has_batch_kernels(&self, kind: RowFormat) -> bool {
        kind == RowFormat::Float(FloatFormat::F16) && self.batch_f16.is_some()
    }

    /// [`Kernels::dot`] with some vectors of `cols` numbers, to the bit as with one after the other.
    ///
    /// `xs`: `[vectors, cols]`; `out`: `[vectors, rows]`.
    ///
    /// # Panics
    /// When the lengths do not agree, or rows of blocks are not whole ones.
    pub fn dot_batch(
        &self,
        kind: impl Into<RowFormat>,
        rows: &[u8],
        xs: &[f32],
        cols: usize,
        out: &mut [f32],
    ) {
        let kind = kind.into();
        let count = count_rows(kind, rows, cols);
        assert!(xs.len().is_multiple_of(cols) && out.len() == xs.len() / cols * count);
        match (kind, self.batch_f16) {
            // SAFETY: as in `ternary`.
            (RowFormat::Float(FloatFormat::F16), Some(shared)) => unsafe {
                (shared.dot)(rows, xs, cols, out)
            },
            _ => {
                let outs = out.chunks_exact_mut(count.max(1));
                xs.chunks_exact(cols).zip(outs).for_each(|(x, out)| self.dot(kind, rows, x, out));
            }
        }
    }

    /// [`Kernels::mix`] for some sums of `cols` numbers, to the bit as for one after the other.
    ///
    /// `weights`: `[vectors, rows]`; `out`: `[vectors, cols]`.
    ///
    /// # Panics
    /// When the lengths do not agree, or rows of blocks are not whole ones.
    pub fn weighted_sum_batch(
        &self,
        kind: impl Into<RowFormat>,
        rows: &[u8],
        weights: &[f32],
        cols: usize,
        out: &mut [f32],
    ) {
        let kind = kind.into();
        let count = count_rows(kind, rows, cols);
        assert!(out.len().is_multiple_of(cols) && weights.len() == out.len() / cols * count);
        match (kind, self.batch_f16) {
            // SAFETY: as in `ternary`.
            (RowFormat::Float(FloatFormat::F16), Some(shared)) => unsafe {
                (shared.weighted_sum)(rows, weights, cols, out)
            },
            _ => {
                let weights = weights.chunks_exact(count.max(1));
                out.chunks_exact_mut(cols)
                    .zip(weights)
                    .for_each(|(out, weights)| self.weighted_sum(kind, rows, weights, out));
            }
        }
    }

    /// Compares this table with the reference on numbers made from `seed`; `Err` says where they
    /// part.
    pub fn self_test(&self, seed: u64) -> Result<(), String> {
        self_test::run(self, seed)
    }
}

/// How many rows of `cols` numbers there are.
fn count_rows(kind: RowFormat, rows: &[u8], cols: usize) -> usize {
    let row = kind.row_bytes(cols).filter(|row| *row > 0).expect("rows are whole blocks");
    assert!(rows.len().is_multiple_of(row), "{} bytes in rows of {row}", rows.len());
    rows.len() / row
}
