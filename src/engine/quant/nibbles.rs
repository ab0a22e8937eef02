//! Rows of 4-bit codes, two to a byte: the form in which a screened head is read.
//!
//! A row is whole blocks of 128 numbers in 64 bytes: byte `j` of a block holds number `j` in its low
//! nibble and number `j + 64` in its high one, so that a register of bytes is two registers of numbers
//! that lie side by side. Code `c`, 0 to 15, stands for `c - 8`.

/// Numbers in a block.
pub const NIBBLE_BLOCK: usize = 128;
/// Bytes of a block.
pub const NIBBLE_BLOCK_BYTES: usize = 64;
/// What is subtracted from a code.
pub const NIBBLE_ZERO: i32 = 8;

/// Code (0 to 15) of number `col` of a row.
pub fn nibble(row: &[u8], col: usize) -> u8 {
    let (block, j) = (col / NIBBLE_BLOCK, col % NIBBLE_BLOCK);
    let byte = row[block * NIBBLE_BLOCK_BYTES + j % NIBBLE_BLOCK_BYTES];
    if j < NIBBLE_BLOCK_BYTES { byte & 15 } else { byte >> 4 }
}
