//! LL

/// The most tokens of a tile
pub(super) const MAX_TOKENS: usize = 8;
/// Rows side by side in a register of 16-bit numbers.
pub(super) const BAND: usize = 32;
/// Units of a chunk: what a line of the cache holds of a row. Ten can be added up in 16 bits (a look gives at
/// most 3 codes of 2 times an int8 of -128, and a unit has four: 40 times 768 is 30,720) and are no faster.
pub(super) const CHUNK_TILES: usize = 8;

/// A unit of 32 rows. Bytes 0 to 3 give the numbers of three codes each (not the highest), two numbers to 16 bits, of
/// which a look takes the lowest five; four bytes masked are a quad: the highest codes of bytes 0 to 3, then each
/// code of bytes 4 to 7, the highest first.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct WeightTile {
    pub lut_indices: [[[u8; 2]; BAND]; 2], // rows 0, 16, 1, 17, ...: a 32-bit lane has one of each half
    pub dot_codes: [[[u8; 64]; 2]; 5],     // [quad][half of the rows][row, byte]
}

/// What a tile of tokens meets a unit with.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct ActivationTables {
    pub sums: [[[i16; 32]; MAX_TOKENS]; 4], // sums of codes 1, 2, 3 of a byte with the token's int8
    pub dot_activations: [[[i8; 4]; 5]; MAX_TOKENS], // int8 in the order of the quads
}
