//! How a number of tokens is split into tiles.

use super::TernaryKernel;

/// A kernel for a fixed number of tokens, which share one unpacking of the weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub tokens: usize,
    /// What a pass costs, relative to the other tiles of the table: tenths of a cycle for 256 weights, say.
    pub cost: u32,
    pub kernel: TernaryKernel,
}

impl Tile {
    pub const fn new(tokens: usize, cost: u32, kernel: TernaryKernel) -> Self {
        Tile { tokens, cost, kernel }
    }

    /// How many tokens it takes, and the kernel.
    pub fn call(self) -> (usize, TernaryKernel) {
        (self.tokens, self.kernel)
    }
}

/// The tiles of a table, and which of them to use for each number of tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    all: &'static [Tile],
    /// The tile to begin with, by the number of tokens that are left, up to [`PLANNED`].
    next: [u8; PLANNED + 1],
}

/// The most tokens that are split at the least cost. Of more tokens, tiles are split off until so few are left.
const PLANNED: usize = 16;

impl Tiles {
    /// Chooses tiles so that their costs add up to the least. One tile must be for one token.
    pub const fn new(all: &'static [Tile]) -> Self {
        let mut next = [0; PLANNED + 1];
        let mut costs = [0; PLANNED + 1];
        let mut tokens = 1;
        while tokens <= PLANNED {
            costs[tokens] = u32::MAX;
            let mut at = 0;
            while at < all.len() {
                let tile = all[at];
                if tile.tokens <= tokens && tile.cost + costs[tokens - tile.tokens] < costs[tokens] {
                    costs[tokens] = tile.cost + costs[tokens - tile.tokens];
                    next[tokens] = at as u8;
                }
                at += 1;
            }
            assert!(costs[tokens] < u32::MAX, "there is a tile for one token");
            tokens += 1;
        }
        Tiles { all, next }
    }

    /// All tiles.
    pub const fn all(&self) -> &'static [Tile] {
        self.all
    }

    /// The tile to begin with where `tokens`, at least one, are left.
    pub fn next(&self, tokens: usize) -> Tile {
        self.all[usize::from(self.next[tokens.min(PLANNED)])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &[u8], _: &[i8], _: usize, _: &mut [i32]) {}

    fn split(tiles: &Tiles, mut tokens: usize) -> Vec<usize> {
        let mut sizes = Vec::new();
        while tokens > 0 {
            sizes.push(tiles.next(tokens).tokens);
            tokens -= sizes[sizes.len() - 1];
        }
        sizes.sort();
        sizes
    }

    #[test]
    fn tiles_are_chosen_so_that_their_costs_add_up_to_the_least() {
        const TILES: Tiles =
            Tiles::new(&[Tile::new(1, 10, nothing), Tile::new(4, 20, nothing), Tile::new(6, 50, nothing)]);
        assert_eq!(split(&TILES, 1), [1]);
        assert_eq!(split(&TILES, 3), [1, 1, 1]);
        assert_eq!(split(&TILES, 6), [1, 1, 4], "40 instead of 50");
        assert_eq!(split(&TILES, 8), [4, 4]);
        assert_eq!(split(&TILES, 16), [4; 4]);
        assert_eq!(split(&TILES, 33), [&[1][..], &[4; 8]].concat());
    }
}
