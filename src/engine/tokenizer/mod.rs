//! Text to token ids and back, and conversations to prompts, from a model file's own metadata.
//!
//! The merging is ours. Hugging Face's `tokenizers` is exact, but it reads its own JSON, brings dozens of
//! crates, and keeps Llama 3's 128000 tokens in hash maps of strings: 70 MB, where this takes 13. `kitoken`
//! and `bpe` do not read GGUF either; `shimmytok` does, from a path of its own, without a promise about
//! long lines. What libraries do well is theirs: `regex` cuts words in linear time, `aho-corasick` finds
//! special tokens, `minijinja` renders templates. `tests/support/compare-tokenizers` holds the result
//! against Hugging Face's.
//!
//! Deliberately knows no model. `template` knows no ids: this file makes ids of its texts.

mod bpe;
mod decode;
mod marks;
mod merge;
mod pieces;
mod template;
mod vocab;
mod words;

pub use decode::{Pushed, TextStream};
pub use template::{Role, Turn};

use crate::engine::error::{LoadError, PromptError, shown};
use crate::engine::gguf::Gguf;
use bpe::BytePairs;
use marks::{Marks, Part};
use pieces::Pieces;
use template::{Family, Names, Prompt, Template};
use vocab::{Entries, Kind, Vocab, token_id};
use words::Cut;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Texts of marks that end a turn; with the ids a file names, they all end an answer.
const END_TEXTS: &[&str] =
    &["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "</s>"];
const END_KEYS: &[&str] =
    &["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// A vocabulary with its rules.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    rules: Rules,
    /// Tokens that only a template or the owner may write.
    marks: Marks,
    /// Tokens that are one in any text.
    wholes: Marks,
    bos: Option<u32>,
    /// Whether a prompt begins with `bos` where its template has not put it there.
    add_bos: bool,
    ends: Vec<u32>,
    chat: Template,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Rules {
    BytePairs(BytePairs),
    Pieces(Pieces),
}

/// A file's tokens and rules, before its special tokens and its template are looked at.
struct Base {
    entries: Entries,
    rules: Rules,
    /// Whether it is Falcon-E's, whose chat form no mark tells.
    falcon_e: bool,
    notes: Vec<String>,
}

impl Base {
    fn read(file: &Gguf) -> Result<Self, LoadError> {
        match file.text(MODEL)? {
            Some("gpt2") => Self::byte_pairs(file),
            Some("llama") => Self::pieces(file),
            Some(other) => {
                Err(not_read(MODEL, other, "use a model with a gpt2 (byte-level BPE) or llama tokenizer"))
            }
            None => Err(LoadError::key(MODEL, "missing; the file is no complete model")),
        }
    }

    fn byte_pairs(file: &Gguf) -> Result<Self, LoadError> {
        let mut notes = Vec::new();
        let pre = file.text(PRE)?;
        let cut = match pre {
            Some(name) => Cut::named(name).ok_or_else(|| {
                not_read(
                    PRE,
                    name,
                    "use a model with the llama-bpe, falcon3, falcon-e or default pre-tokenizer",
                )
            })?,
            // The official 2B-4T file names none; its tokenizer is Llama 3's.
            None => {
                notes.push("the file names no pre-tokenizer; llama-bpe is used".into());
                Cut::Llama3
            }
        };
        let (entries, rules) = BytePairs::read(file, cut)?;
        let falcon_e = matches!(pre, Some("falcon-e" | "falcon_e"));
        Ok(Base { entries, rules: Rules::BytePairs(rules), falcon_e, notes })
    }

    fn pieces(file: &Gguf) -> Result<Self, LoadError> {
        let (entries, rules) = Pieces::read(file)?;
        let mut notes = Vec::new();
        if rules.missing_bytes() > 0 {
            notes.push(format!(
                "{} bytes have no token; characters with one are read as the unknown token",
                rules.missing_bytes()
            ));
        }
        Ok(Base { entries, rules: Rules::Pieces(rules), falcon_e: false, notes })
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model file: a byte-level one (`gpt2`) or a SentencePiece one (`llama`).
    ///
    /// # Errors
    /// What it does not read by name, and whatever does not hold together, at its key. A chat template
    /// that cannot be used is an error only where no form of the model's family takes its place.
    pub fn read(file: &Gguf) -> Result<Self, LoadError> {
        let Base { mut entries, rules, falcon_e, mut notes } = Base::read(file)?;
        let bos = token_id(file, "tokenizer.ggml.bos_token_id", entries.vocab.len())?;
        let ends = end_ids(file, &entries)?;
        notes.push(ends_note(&entries.vocab, &ends));
        entries.mark(&ends);
        entries.mark(bos.as_slice());
        let family = Family::detect(file, &entries, falcon_e)?;
        let names = names(file, &entries.vocab)?;
        let (chat, own_form) = read_template(file, family, names, &mut notes)?;
        let add_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(own_form && family.begins());
        let marks = Marks::new(&entries.vocab, entries.of(Kind::Mark), Kind::Mark)?;
        let wholes = Marks::new(&entries.vocab, entries.of(Kind::Whole), Kind::Whole)?;
        Ok(Tokenizer { vocab: entries.vocab, rules, marks, wholes, bos, add_bos, ends, chat, notes })
    }

    /// Tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes a token stands for; a special token's are its name.
    ///
    /// # Panics
    /// When `id` is outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.vocab.get(id)
    }

    /// Whether a token ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// What the file had wrong or missing and how that was met, and which tokens end an answer: short
    /// sentences for a log.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Ids of a text in which nothing is special. No beginning-of-text is added.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids);
        ids
    }

    /// Ids of a text in which the names of special tokens mean those tokens. For text of the
    /// owner's only: a user's text must not be able to end its own turn.
    pub fn encode_with_specials(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.marks.each(text, |part| match part {
            Part::Text(text) => self.encode_into(text, &mut ids),
            Part::Token(id) => ids.push(id),
        });
        ids
    }

    /// The token that begins every text the model was trained on, where it has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Ids of a conversation in the model's own form, ready for the assistant's next turn. Nothing that
    /// is said in it becomes a special token.
    ///
    /// # Errors
    /// When the model's chat template does not take the conversation.
    pub fn prompt_chat(&self, turns: &[Turn<'_>]) -> Result<Vec<u32>, PromptError> {
        let prompt = self.chat.prompt(turns).map_err(|why| PromptError::Template(why.to_string()))?;
        let mut ids = Vec::new();
        self.encode_prompt(&prompt, &mut ids);
        if self.add_bos && self.bos.is_some() && ids.first() != self.bos.as_ref() {
            ids.splice(..0, self.bos);
        }
        Ok(ids)
    }

    /// Looks for special tokens in what the template wrote only. What stands between two of them is
    /// encoded as one text, as it was in training, whoever said which part of it.
    fn encode_prompt(&self, prompt: &Prompt, ids: &mut Vec<u32>) {
        let mut plain = 0; // from here on nothing is encoded yet
        let mut at = 0;
        let end = (prompt.text.len()..prompt.text.len(), 0);
        for (said, _) in prompt.said.iter().chain([&end]) {
            let mut place = at;
            self.marks.each(&prompt.text[at..said.start], |part| match part {
                Part::Text(text) => place += text.len(),
                Part::Token(id) => {
                    self.encode_into(&prompt.text[plain..place], ids);
                    ids.push(id);
                    place += self.vocab.get(id).len();
                    plain = place;
                }
            });
            at = said.end;
        }
        self.encode_into(&prompt.text[plain..], ids);
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        self.wholes.each(text, |part| match part {
            Part::Token(id) => ids.push(id),
            Part::Text(text) => match &self.rules {
                Rules::BytePairs(rules) => rules.encode(&self.vocab, text, ids),
                Rules::Pieces(rules) => rules.encode(&self.vocab, text, ids),
            },
        });
    }
}

fn not_read(key: &str, name: &str, way_out: &str) -> LoadError {
    LoadError::key(key, format!("\"{}\" is not read by this version; {way_out}", shown(name)))
}

/// The template that prompts are made with, and whether it is a form of ours.
fn read_template(
    file: &Gguf,
    family: Family,
    names: Names,
    notes: &mut Vec<String>,
) -> Result<(Template, bool), LoadError> {
    let given = file.text(TEMPLATE)?;
    let fail = |why: String| LoadError::key(TEMPLATE, why);
    match given {
        None if family == Family::Plain => {
            notes.push("the file has no chat template; the model goes on with what is said".into());
        }
        None => notes.push(format!("the file has no chat template; {}'s form is used", family.name())),
        Some(template) if family.knows_better_than(template) => {
            notes.push(format!(
                "the file's chat template is not what the model was trained on; {}'s form is used",
                family.name()
            ));
        }
        Some(template) => match Template::new(template.to_owned(), names.clone()) {
            Ok(template) => return Ok((template, false)),
            Err(why) if family == Family::Plain => {
                return Err(fail(format!("{why}; give the file a template that can be used")));
            }
            Err(why) => {
                notes.push(format!("the file's chat template {why}; {}'s form is used", family.name()));
            }
        },
    }
    Template::new(family.form().to_owned(), names).map(|template| (template, true)).map_err(fail)
}

/// The names that templates call tokens by.
fn names(file: &Gguf, vocab: &Vocab) -> Result<Names, LoadError> {
    let name = |key: &str| -> Result<Option<String>, LoadError> {
        let id = token_id(file, key, vocab.len())?;
        Ok(id.map(|id| String::from_utf8_lossy(vocab.get(id)).into_owned()))
    };
    Ok(Names { bos: name("tokenizer.ggml.bos_token_id")?, eos: name("tokenizer.ggml.eos_token_id")? })
}

/// Every token that ends an answer. Without types a text that reads like an end is taken for one; with
/// them it must be a mark: Llama 3's vocabulary has `</s>` as three letters of text.
fn end_ids(file: &Gguf, entries: &Entries) -> Result<Vec<u32>, LoadError> {
    let ids = entries.by_text();
    let is_mark = |id: &u32| !entries.typed || entries.kind(*id) == Kind::Mark;
    let texts = END_TEXTS.iter().filter_map(|text| ids.get(text.as_bytes()).copied());
    let mut ends: Vec<u32> = texts.filter(is_mark).collect();
    for key in END_KEYS {
        ends.extend(token_id(file, key, entries.vocab.len())?);
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

fn ends_note(vocab: &Vocab, ends: &[u32]) -> String {
    let names: Vec<String> = ends.iter().map(|id| format!("{} ({id})", vocab.name(*id))).collect();
    match names.is_empty() {
        true => "no token ends an answer; only its length does".into(),
        false => format!("answers end at {}", names.join(", ")),
    }
}
