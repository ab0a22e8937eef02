//! The inner loops of the engine: GEMV and GEMM over ternary weights, attention over half-precision rows, and block
//! formats, with one table of functions for each instruction set.
//!
//! [`Kernels`] is a table of function pointers, built by [`Kernels::detect`], by [`Kernels::scalar`] or, for tests
//! and benchmarks, by [`Kernels::all`]. Its safe methods check all lengths and then make one call for a whole range
//! of rows, so that the indirect call costs nothing. Integer results are always equal in all tables; sums of floats
//! differ by rounding.
//!
//! Each architecture has a folder with a folder for each instruction set, and in it the same files: `gemv` (one token)
//! and `gemm` (several) for ternary weights, `attention_f16` and `block_quant` where the instruction set has its own.
//! Weights stay packed in memory, four 2-bit codes to a byte as [`super::quant::code`] reads them. They are unpacked
//! in registers, in the inner loop of `gemv` and `gemm`; the `mod.rs` of each instruction set says by which function
//! or macro.
//!
//! Deliberately knows nothing of models and files: it sees matrices, rows and numbers.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod block_quant;
mod multiply_add;
mod prefetch;
mod scalar;
mod self_test;
mod simd_dispatch;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use prefetch::{prefetch, prefetch_first_line};
pub use simd_dispatch::WithSimd;

use tiles::Tiles;

use super::quant::{BLOCK, BlockFormat, FloatFormat, RowFormat, packed_row};

/// Ternary codes times int8, for a fixed number of tokens: `out[t * rows + r] = sum over c of code(r, c) * q[t *
/// cols + c]`.
type TernaryKernel = unsafe fn(weights: &[u8], q: &[i8], cols: usize, out: &mut [i32]);

/// Half-precision rows times a vector: `out[r] = sum over c of rows[r, c] * x[c]`.
type DotF16 = unsafe fn(rows: &[u8], x: &[f32], out: &mut [f32]);
/// Weighted sum of half-precision rows: `out[c] += sum over r of weights[r] * rows[r, c]`.
type WeightedSumF16 = unsafe fn(rows: &[u8], weights: &[f32], out: &mut [f32]);

/// Half-precision rows with several vectors at a time. The results are bit for bit those of one vector after the
/// other.
#[derive(Debug, Clone, Copy)]
struct BatchF16 {
    /// `out[v * rows + r] = sum over c of rows[r, c] * xs[v * cols + c]`.
    dot: unsafe fn(rows: &[u8], xs: &[f32], cols: usize, out: &mut [f32]),
    /// `out[v * cols + c] += sum over r of weights[v * rows + r] * rows[r, c]`.
    weighted_sum: unsafe fn(rows: &[u8], weights: &[f32], cols: usize, out: &mut [f32]),
}

/// Rows in a block format times a vector: `out[r] = sum over c of rows[r, c] * x[c]`.
type DotBlocks = unsafe fn(kind: BlockFormat, rows: &[u8], x: &[f32], out: &mut [f32]);

/// Weighted sum of rows in a block format: `out[c] += sum over r of weights[r] * rows[r, c]`.
type WeightedSumBlocks = unsafe fn(kind: BlockFormat, rows: &[u8], weights: &[f32], out: &mut [f32]);

/// A ternary kernel that pays from some numbers of tokens and rows on.
#[derive(Debug, Clone, Copy)]
struct BatchKernel {
    min_tokens: usize,
    min_rows: usize,
    /// Takes any number of tokens.
    kernel: TernaryKernel,
}

/// The inner loops for one instruction set.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    name: &'static str,
    batch: Option<BatchKernel>,
    tiles: Tiles,
    /// Those of the tiles that are exact for the codes 0 to 3 too.
    two_bit_tiles: Tiles,
    /// How many tokens to multiply at a time.
    call_tokens: usize,
    dot_f16: DotF16,
    weighted_sum_f16: WeightedSumF16,
    batch_f16: Option<BatchF16>,
    dot_blocks: DotBlocks,
    weighted_sum_blocks: WeightedSumBlocks,
    simd: simd_dispatch::SimdLevel,
}

/// The CPU features that matter here, and whether this CPU has them. This is the only place that asks for them.
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
        ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
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
    /// The fastest table that this CPU can run.
    pub fn detect() -> Self {
        Self::all().last().expect("scalar runs everywhere").for_this_cpu()
    }

    /// The table with those of its kernels that are the fastest on this CPU.
    fn for_this_cpu(self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if self.name == x86_64::avx512::TABLE.name {
            return x86_64::avx512::table_for(|name| cpu_features().contains(&(name, true)));
        }
        self
    }

    /// The reference table, in plain Rust.
    pub fn scalar() -> Self {
        scalar::TABLE
    }

    /// Every table that this CPU can run, the slowest first, each with all its kernels, so that tests reach them.
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

    /// The table of that name, if this CPU can run it.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|table| table.name == name).map(Self::for_this_cpu)
    }

    /// The table's name: `scalar`; `avx2`, `avx512vl-vnni`, `avx-vnni`, `avx512-vnni`; `neon`, `neon-dotprod`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many tokens to multiply at a time, so that they are split into tiles at the least cost.
    pub fn tile_tokens(&self) -> usize {
        self.call_tokens
    }

    /// The number of tokens from which on the batch kernel is faster than tiles of [`Kernels::tile_tokens`]. It
    /// wants all tokens and some hundred rows in one call, and takes about 190 KB of stack.
    pub fn batch_min_tokens(&self) -> Option<usize> {
        self.batch.map(|batch| batch.min_tokens)
    }

    /// Multiplies ternary rows by rows quantised to int8.
    ///
    /// `weights`: `[rows, packed_row(cols)]`, packed as [`super::quant`] says; `q`: `[tokens, cols]`, where `cols`
    /// is a multiple of the block size; `sums`: `[tokens]`, the sum of each row of `q`; `out`: `[tokens, rows]`.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn ternary_gemm(&self, weights: &[u8], q: &[i8], sums: &[i32], out: &mut [i32]) {
        self.ternary_gemm_codes(weights, q, sums.len(), out);
        subtract_sums(sums, out);
    }

    /// Multiplies rows of 2-bit codes 0 to 3, which stand for -1 to 2, by rows quantised to int8, none of which is
    /// beyond 85: then three times an int8 is at most twice 128, which is what the sums of ternary weights in few bits
    /// can hold. (Products of `vpdpbusd` and `sdot` are added in 32 bits and would need no such limit.)
    ///
    /// The shapes are those of [`Kernels::ternary_gemm`]. Where a table looks up sums of ternary codes, among which
    /// there is no 3, it multiplies one token after the other here.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn two_bit_gemm(&self, weights: &[u8], q: &[i8], sums: &[i32], out: &mut [i32]) {
        debug_assert!(q.iter().all(|q| q.unsigned_abs() <= 85));
        self.multiply_codes(weights, q, sums.len(), out, |tokens, _| self.two_bit_tiles.next(tokens).call());
        subtract_sums(sums, out);
    }

    /// The same without subtracting the token's sum from each number, for callers that pass over the output anyway:
    /// the codes count as they are stored, 0, 1, 2 for -1, 0, 1.
    ///
    /// # Panics
    /// When the lengths do not agree.
    pub fn ternary_gemm_codes(&self, weights: &[u8], q: &[i8], tokens: usize, out: &mut [i32]) {
        self.multiply_codes(weights, q, tokens, out, |tokens, rows| self.select_kernel(tokens, rows));
    }

    /// `select` chooses the kernel for the next of so many tokens and for so many rows; it returns how many of them the
    /// kernel takes.
    fn multiply_codes(
        &self,
        weights: &[u8],
        q: &[i8],
        tokens: usize,
        out: &mut [i32],
        select: impl Fn(usize, usize) -> (usize, TernaryKernel),
    ) {
        assert!(tokens > 0 && q.len().is_multiple_of(tokens) && out.len().is_multiple_of(tokens));
        let (cols, rows) = (q.len() / tokens, out.len() / tokens);
        assert!(cols > 0 && cols.is_multiple_of(BLOCK) && weights.len() == rows * packed_row(cols));
        // The largest magnitude of a sum is two times 128 for each column.
        assert!(cols <= i32::MAX as usize / 256);
        let mut token = 0;
        while token < tokens {
            let (count, kernel) = select(tokens - token, rows);
            let (q, out) = (&q[token * cols..][..count * cols], &mut out[token * rows..][..count * rows]);
            // SAFETY: the table was chosen for this CPU, and the lengths were checked above as the kernels expect
            // them.
            unsafe { kernel(weights, q, cols, out) }
            token += count;
        }
    }

    /// Chooses the kernel for the next tokens; returns how many of them it takes.
    fn select_kernel(&self, tokens: usize, rows: usize) -> (usize, TernaryKernel) {
        match self.batch {
            Some(batch) if tokens >= batch.min_tokens && rows >= batch.min_rows => (tokens, batch.kernel),
            _ => self.tiles.next(tokens).call(),
        }
    }

    /// Multiplies rows of numbers by a vector.
    ///
    /// `rows`: `[out.len(), x.len()]` in format `kind`; `x`: `[cols]`; `out`: `[rows]`. The result for a row does
    /// not depend on the other rows of the call, and every table gives the same bits: each adds up the same lanes, with
    /// one rounding for a product and its sum, and then the lanes in the same order. (Only the sign of a zero may
    /// differ.)
    ///
    /// # Panics
    /// When the lengths do not agree, or rows in a block format are not whole blocks.
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

    /// Adds rows of numbers, each multiplied by its weight, to `out`.
    ///
    /// `rows`: `[weights.len(), out.len()]` in format `kind`; `weights`: `[rows]`; `out`: `[cols]`. Rows are added
    /// in order.
    ///
    /// # Panics
    /// When the lengths do not agree, or rows in a block format are not whole blocks.
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

    /// Whether [`Kernels::dot_batch`] and [`Kernels::weighted_sum_batch`] read rows of a format once for several
    /// vectors instead of once for each.
    pub fn has_batch_kernels(&self, kind: RowFormat) -> bool {
        kind == RowFormat::Float(FloatFormat::F16) && self.batch_f16.is_some()
    }

    /// [`Kernels::dot`] with several vectors of `cols` numbers, bit for bit as with one after the other.
    ///
    /// `xs`: `[vectors, cols]`; `out`: `[vectors, rows]`.
    ///
    /// # Panics
    /// When the lengths do not agree, or rows in a block format are not whole blocks.
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

    /// [`Kernels::weighted_sum`] for several outputs of `cols` numbers, bit for bit as for one after the other.
    ///
    /// `weights`: `[vectors, rows]`; `out`: `[vectors, cols]`.
    ///
    /// # Panics
    /// When the lengths do not agree, or rows in a block format are not whole blocks.
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

    /// Compares this table with the reference on random numbers from `seed`. The error says where they differ.
    pub fn self_test(&self, seed: u64) -> Result<(), String> {
        self_test::run(self, seed)
    }
}

/// Codes 0, 1, 2, 3 stand for -1, 0, 1, 2: one subtraction a row instead of one a weight. `out`: `[tokens, rows]`.
fn subtract_sums(sums: &[i32], out: &mut [i32]) {
    for (out, sum) in out.chunks_exact_mut((out.len() / sums.len()).max(1)).zip(sums) {
        out.iter_mut().for_each(|dot| *dot -= sum);
    }
}

/// The number of rows of `cols` numbers.
fn count_rows(kind: RowFormat, rows: &[u8], cols: usize) -> usize {
    let row = kind.row_bytes(cols).filter(|row| *row > 0).expect("rows are whole blocks");
    assert!(rows.len().is_multiple_of(row), "{} bytes in rows of {row}", rows.len());
    rows.len() / row
}
