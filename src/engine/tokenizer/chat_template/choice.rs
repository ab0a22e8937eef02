//! Which chat template prompts are made with: what the owner says of it.

use crate::engine::error::LoadError;
use crate::external_text::{without_bom, wrong_head};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a template's file; the longest in use have some 20 KB.
const MAX_BYTES: u64 = 64 << 10;

/// Which chat template is used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ChatTemplate {
    /// The model file's own, unless it has none, or one that is known to be wrong or cannot be used: then that of
    /// its architecture, and a note says so.
    #[default]
    Auto,
    /// The model file's own, whatever it is.
    File,
    /// That of the architecture.
    BuiltIn,
    /// Another, and where it comes from.
    Text {
        /// Names it in errors and notes.
        place: String,
        /// Its source.
        source: String,
    },
}

impl ChatTemplate {
    /// What a setting means: `file`, `built-in`, or else the path of a template.
    ///
    /// # Errors
    /// A file that cannot be read, is no regular file, is too long or is no UTF-8 text.
    pub fn of_setting(setting: &Path) -> Result<Self, LoadError> {
        match setting.to_str() {
            Some("file") => Ok(ChatTemplate::File),
            Some("built-in") => Ok(ChatTemplate::BuiltIn),
            _ => Self::read(setting),
        }
    }

    fn read(path: &Path) -> Result<Self, LoadError> {
        let place = path.display().to_string().replace(char::is_control, "?");
        let fail = |what: String| {
            let way_out = "use \"file\", \"built-in\" or the path of a Jinja template";
            LoadError::new("chat_template", format!("{place}: {what}; {way_out}"))
        };
        // Asked before it is opened: opening a pipe would wait for its other end.
        let kind = std::fs::metadata(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
        if !kind.is_file() {
            return Err(fail("is no regular file".into()));
        }
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| fail(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(fail(format!("has more than {MAX_BYTES} bytes")));
        }
        if let Some(wrong) = wrong_head(&bytes) {
            return Err(fail(wrong.into()));
        }
        let source = std::str::from_utf8(without_bom(&bytes)).map_err(|_| fail("is no UTF-8 text".into()))?;
        let source = source.to_owned();
        Ok(ChatTemplate::Text { place, source })
    }
}
