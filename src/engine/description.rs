//! What a model file says of itself, for clients that list models.
//!
//! Deliberately reads no weights.

use super::ModelFile;
use super::error::LoadError;
use sha2::{Digest, Sha256};

/// How many of the file's first bytes are part of its digest: they hold the metadata.
const DIGEST_BYTES: usize = 64 << 10;

/// A model file in a few words and numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDescription {
    /// `general.name`, else the architecture.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// The tensor type that most of them have, by ggml's name.
    pub weight_type: &'static str,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 over the length and the first 64 KiB of the file, in hexadecimal digits. It tells models apart.
    pub digest: String,
    /// Tokens of context that the model was trained for.
    pub context: usize,
    /// `tokenizer.chat_template`; empty where there is none.
    pub template: String,
}

impl ModelFile {
    /// What the file says of itself.
    ///
    /// # Errors
    /// Metadata of another type than its key has.
    pub fn description(&self) -> Result<ModelDescription, LoadError> {
        let file = self.file();
        let text = |key| file.text(key).map_err(|error| error.within(&self.place));
        let mut types: Vec<(&'static str, u64)> = Vec::new();
        for tensor in file.tensors() {
            let (name, numbers) = (tensor.kind.name(), tensor.dims.iter().map(|size| *size as u64).product());
            match types.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += numbers,
                None => types.push((name, numbers)),
            }
        }
        let bytes: &[u8] = file.map();
        let mut digest = Sha256::new();
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(&bytes[..bytes.len().min(DIGEST_BYTES)]);
        let architecture = self.shape().arch.clone();
        Ok(ModelDescription {
            name: text("general.name")?.map_or(architecture.clone(), str::to_owned),
            architecture,
            parameters: types.iter().map(|(_, numbers)| numbers).sum(),
            weight_type: types.iter().max_by_key(|(_, numbers)| *numbers).map_or("none", |(name, _)| name),
            bytes: bytes.len() as u64,
            digest: digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            context: self.shape().context,
            template: text("tokenizer.chat_template")?.unwrap_or_default().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{ModelFile, Source};

    #[test]
    fn the_built_in_model_is_described() {
        let description = ModelFile::open(&Source::BuiltIn, None).and_then(|file| file.description());
        let description = description.expect("it is sound");
        assert!(description.name.contains("home"), "{description:?}");
        assert!((1_000_000..100_000_000).contains(&description.parameters), "{description:?}");
        assert_eq!((description.digest.len(), description.weight_type), (64, "I2_S"), "{description:?}");
    }
}
