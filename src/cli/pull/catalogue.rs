//! The models that `pull` knows by name. Deliberately downloads nothing.

use std::fmt::Write as _;

/// A model with a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KnownModel {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    pub licence: &'static str,
    /// Its repository on Hugging Face.
    pub repository: &'static str,
    /// The commit of the repository, where one is known to hold the file with the checksum below; else `main`.
    pub revision: &'static str,
    /// The file in the repository.
    pub file: &'static str,
    /// Its name here: most repositories name their file ggml-model-i2_s.gguf.
    pub saved_as: &'static str,
    /// Length in bytes.
    pub length: KnownLength,
    /// Checksum; `None` where no two independent sources state it.
    pub sha256: Option<&'static str>,
    /// The smallest board that carries it, by its memory.
    pub board: &'static str,
}

/// How well the length of a file is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownLength {
    /// To the byte: another length is an error.
    Exact(u64),
    /// As published; the server's own figure counts.
    About(u64),
}

impl KnownLength {
    pub fn bytes(self) -> u64 {
        let (KnownLength::Exact(bytes) | KnownLength::About(bytes)) = self;
        bytes
    }
}

const FALCON: &str = "Falcon-LLM 2.0";

/// The table. The length and the checksum of the first are stated alike by several projects that verified their download;
/// lengths of the others are those of their pages. Which board carries a model comes from the memory plan of `bitnetd inspect`,
/// made of a file with the shape of the model and an f16 KV cache.
pub(super) const MODELS: [KnownModel; 5] = [
    KnownModel {
        name: "bitnet-2b",
        about: "BitNet-b1.58-2B-4T, Microsoft's chat model",
        licence: "MIT",
        repository: "microsoft/bitnet-b1.58-2B-4T-gguf",
        revision: "a1f2f1c765812aa8af3f6eda4a313707064bba15",
        file: "ggml-model-i2_s.gguf",
        saved_as: "bitnet-b1.58-2b-4t.i2_s.gguf",
        length: KnownLength::Exact(1_187_801_280),
        sha256: Some("4221b252fdd5fd25e15847adfeb5ee88886506ba50b8a34548374492884c2162"),
        board: "1 GB",
    },
    KnownModel {
        name: "falcon-e-1b",
        about: "Falcon-E-1B-Instruct, trained with ternary weights",
        licence: FALCON,
        repository: "tiiuae/Falcon-E-1B-Instruct-GGUF",
        revision: "main",
        file: "ggml-model-i2_s.gguf",
        saved_as: "falcon-e-1b-instruct.i2_s.gguf",
        length: KnownLength::About(666_000_000),
        sha256: None,
        board: "1 GB",
    },
    KnownModel {
        name: "falcon-e-3b",
        about: "Falcon-E-3B-Instruct, trained with ternary weights",
        licence: FALCON,
        repository: "tiiuae/Falcon-E-3B-Instruct-GGUF",
        revision: "main",
        file: "ggml-model-i2_s.gguf",
        saved_as: "falcon-e-3b-instruct.i2_s.gguf",
        length: KnownLength::About(1_000_000_000),
        sha256: None,
        board: "2 GB",
    },
    KnownModel {
        name: "falcon3-1b",
        about: "Falcon3-1B-Instruct, made ternary afterwards",
        licence: FALCON,
        repository: "tiiuae/Falcon3-1B-Instruct-1.58bit-GGUF",
        revision: "main",
        file: "ggml-model-i2_s.gguf",
        saved_as: "falcon3-1b-instruct-1.58bit.i2_s.gguf",
        length: KnownLength::About(1_360_000_000),
        sha256: None,
        board: "1 GB",
    },
    KnownModel {
        name: "falcon3-7b",
        about: "Falcon3-7B-Instruct, made ternary afterwards",
        licence: FALCON,
        repository: "tiiuae/Falcon3-7B-Instruct-1.58bit-GGUF",
        revision: "main",
        file: "ggml-model-i2_s.gguf",
        saved_as: "falcon3-7b-instruct-1.58bit.i2_s.gguf",
        length: KnownLength::About(3_280_000_000),
        sha256: None,
        board: "4 GB",
    },
];

/// The model with that name.
pub(super) fn named(name: &str) -> Option<&'static KnownModel> {
    MODELS.iter().find(|model| model.name == name)
}

/// All names, for a message.
pub(super) fn names() -> String {
    MODELS.map(|model| model.name).join(", ")
}

/// The table for people, with what is checked after a download of each.
pub(super) fn table() -> String {
    let mut table =
        format!("{:<12} {:>8}  {:<6} {:<15} {:<8} model\n", "name", "size", "board", "licence", "SHA-256");
    for model in &MODELS {
        let exact = if matches!(model.length, KnownLength::Exact(_)) { "" } else { "~" };
        let size = format!("{exact}{:.2} GB", model.length.bytes() as f64 / 1e9);
        let checksum = if model.sha256.is_some() { "known" } else { "server's" };
        let KnownModel { name, board, licence, about, .. } = model;
        let _ = writeln!(table, "{name:<12} {size:>8}  {board:<6} {licence:<15} {checksum:<8} {about}");
    }
    table + NOTES
}

const NOTES: &str = "
board: the smallest that carries it beside nothing else; `bitnetd inspect FILE` plans the memory of a file.
SHA-256 known: the file is compared with the checksum in this program. server's: with the one that the server names; where it
names none, only the length and whether it is a sound model are checked. --sha256 compares with your own.
The licences of models are theirs, not bitnetd's; read them on https://huggingface.co/ before you use a model.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files_of_the_table_are_unique_and_checksums_are_well_formed() {
        for (at, model) in MODELS.iter().enumerate() {
            let others = MODELS.iter().skip(at + 1);
            assert!(others.clone().all(|other| other.name != model.name && other.saved_as != model.saved_as));
            let is_checksum = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(model.sha256.is_none_or(is_checksum), "{}", model.name);
            // A checksum without a fixed commit would refuse a new release of the file.
            assert_eq!(model.sha256.is_some(), model.revision != "main", "{}", model.name);
        }
    }

    #[test]
    fn every_line_of_the_table_fits_a_terminal() {
        for line in table().lines() {
            assert!(line.chars().count() <= 125, "{line}");
        }
    }
}
