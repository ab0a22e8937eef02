//! Pseudo-random numbers for models with random weights, the self-test of the kernels, and tests: the same seed gives
//! the same numbers on every machine.
//!
//! Deliberately not for sampling tokens, whose generator is of better quality, nor for secrets.

/// A linear congruential generator modulo 2^64 with the constants of Knuth's MMIX. Its low bits have short periods, so
/// only the high ones are used. Its sequence never changes, because synthetic models and limits in tests depend on it.
#[derive(Debug, Clone)]
pub struct Lcg(u64);

impl Lcg {
    /// The generator of this seed.
    pub const fn new(seed: u64) -> Self {
        Lcg(seed)
    }

    fn step(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    /// The high 32 bits of the next state.
    pub fn next_u32(&mut self) -> u32 {
        (self.step() >> 32) as u32
    }

    /// The high 31 bits of the next state.
    pub fn next_u31(&mut self) -> u32 {
        (self.step() >> 33) as u32
    }

    /// The high 24 bits of the next state as a fraction: at least 0, below 1.
    pub fn fraction(&mut self) -> f32 {
        (self.step() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// A number from -1 to 1.
    pub fn float(&mut self) -> f32 {
        self.next_u31() as f32 / (1u32 << 30) as f32 - 1.0
    }

    /// Numbers from -1 to 1.
    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    /// Bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next_u31() as u8).collect()
    }

    /// Signed bytes.
    pub fn int8(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| self.next_u31() as i8).collect()
    }

    /// Packed ternary weights: bytes of four 2-bit codes from 0 to 2.
    pub fn ternary_codes(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|_| (0..4).fold(0, |byte, _| byte << 2 | (self.next_u31() % 3) as u8)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_the_constants() {
        let mut numbers = Lcg::new(1);
        assert_eq!([(); 3].map(|()| numbers.next_u32()), [1_817_669_548, 2_187_888_307, 2_784_682_393]);
        assert_eq!(Lcg::new(1).next_u31(), 908834774);
        assert_eq!(Lcg::new(1).fraction(), 7100271.0 / 16_777_216.0);
        assert_eq!(Lcg::new(1).float(), 908834774.0 / 1_073_741_824.0 - 1.0);
    }
}
