//! The data layouts that the table look-up kernels share: tiles of weights, and the tables of a tile of tokens.

/// The most tokens of a tile: the sums of each token take two registers of 32-bit and one of 16-bit numbers. More
/// than six tokens stay in registers only in assembly. 128 tokens are 16 tiles.
pub(super) const MAX_TOKENS: usize = 8;
/// Rows side by side in a register of 16-bit numbers.
pub(super) const BAND: usize = 32;
/// Weight tiles of a chunk: what one cache line holds of a row. Ten would still fit 16-bit sums (a look-up gives at
/// most three codes of 2 times an int8 of -128, and a tile has four: 40 times 768 is 30,720) and are no faster.
pub(super) const CHUNK_TILES: usize = 8;

/// Eight bytes of 32 rows. Of bytes 0 to 3 all codes but the highest are written as one number in base 3, of which
/// a 16-bit lane holds two; the look-up uses its lowest five bits. The other codes are multiplied by `vpdpbusd`,
/// four bytes at a time: the highest codes of bytes 0 to 3, then each code of bytes 4 to 7, the highest first.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct WeightTile {
    pub lut_indices: [[[u8; 2]; BAND]; 2], // rows 0, 16, 1, 17, ...: a 32-bit lane has one of each half
    pub dot_codes: [[[u8; 64]; 2]; 5],     // [group of four bytes][half of the rows][row, byte]
}

/// The look-up tables and int8 activations of a tile of tokens for one weight tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct ActivationTables {
    pub sums: [[[i16; 32]; MAX_TOKENS]; 4], // for each byte and token: the 27 sums of three codes times the token's int8
    pub dot_activations: [[[i8; 4]; 5]; MAX_TOKENS], // int8 in the order of `dot_codes`
}
