//! Plain loops, compiled once more for wider registers.
//!
//! A loop of Rust is compiled for the least processor of its family. What is inlined into a function with more
//! features is compiled for those; nothing here is fused or reordered, so that a loop gives the same bits.

use super::Kernels;

/// What plain loops may be compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SimdLevel {
    /// What every processor of the family has.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Loops with what they work on. A type and not a closure: the compiler inlines no closure that is called in more than
/// one place.
pub trait WithSimd {
    /// What they find.
    type Output;

    /// Runs them; to be marked `#[inline(always)]`, as all that it calls.
    fn run(self) -> Self::Output;
}

impl Kernels {
    /// Runs loops compiled for this table's processor.
    #[inline(always)]
    pub fn with_simd<L: WithSimd>(&self, loops: L) -> L::Output {
        match self.simd {
            SimdLevel::Baseline => loops.run(),
            // SAFETY: the table was made for this processor.
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
