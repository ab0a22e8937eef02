//! Writes the manual pages and the completions for shells into a folder: `cargo run --example manual -- FOLDER`.
//!
//! They come from the same description as `--help`, so that they cannot differ from it. A package brings them; the
//! program itself has no use for the two libraries.

use clap_complete::{Shell, generate_to};
use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: manual FOLDER"))?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(bitnetd::cli::command(), folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut bitnetd::cli::command(), "bitnetd", folder)?;
    }
    Ok(())
}
