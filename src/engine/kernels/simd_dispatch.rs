//! Compiles plain loops for wider SIMD registers, and runs the version that fits the CPU.
//!
//! rustc compiles for the baseline CPU of the architecture. Code that is inlined into a function with
//! `#[target_feature]` is compiled for those features instead. Nothing here is fused or reordered, so that a loop
//! gives the same bits in every version.

use super::Kernels;

/// The instruction sets that plain loops are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SimdLevel {
    /// What every CPU of the architecture has.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Loops together with their arguments. A type and not a closure, because the compiler does not inline a closure
/// that is called in more than one place.
pub trait WithSimd {
    /// The result of the loops.
    type Output;

    /// Runs the loops. Implementations, and all that they call, are marked `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

impl Kernels {
    /// Runs the version of the loops that is compiled for this table's CPU.
    #[inline(always)]
    pub fn with_simd<L: WithSimd>(&self, loops: L) -> L::Output {
        match self.simd {
            SimdLevel::Baseline => loops.run(),
            // SAFETY: the table was chosen for a CPU that has these features.
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => unsafe { avx2(loops) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => unsafe { avx512(loops) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<L: WithSimd>(loops: L) -> L::Output {
    loops.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
fn avx512<L: WithSimd>(loops: L) -> L::Output {
    loops.run()
}
