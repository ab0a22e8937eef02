//! The tokenizer: text to token ids and back, and conversations to prompts, from a model file's own metadata.
//!
//! The merging is implemented here. Hugging Face's `tokenizers` is exact, but it reads its own JSON, brings dozens
//! of crates, and keeps Llama 3's 128000 tokens in hash maps of strings: 70 MB, where this takes 13. `kitoken` and
//! `bpe` do not read GGUF either; `shimmytok` does, from a path of its own, without a guarantee about long lines.
//! What libraries do well is left to them: `regex` splits words in linear time, `aho-corasick` finds special
//! tokens. `tests/support/compare-tokenizers` compares the result with Hugging
//! Face's.
//!
//! Deliberately knows nothing of models. `chat_template` knows no ids: this file turns its texts into ids.

mod bpe;
mod chat_template;
mod detokenizer;
mod merge;
mod pre_tokenizer;
mod sentencepiece;
mod special_tokens;
mod vocab;

pub use chat_template::{
    CallSyntax, ChatCall, ChatMessage, ChatRole, ChatTemplate, LocalClock, Turn, WrittenCall,
};
pub use detokenizer::{StreamStep, TextStream};

use crate::engine::error::{LoadError, PromptError, escaped};
use crate::engine::gguf::Gguf;
use crate::engine::known_keys::check_tokenizer;
use crate::external_text::JsonValue;
use bpe::ByteLevelBpe;
use chat_template::{Names, Template, TemplateFamily, Text};
use pre_tokenizer::PreTokenizer;
use sentencepiece::SentencePiece;
use special_tokens::{SpecialTokens, TextPart};
use vocab::{TOKENS, TokenKind, TokenTable, Vocab, token_id, token_ids};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TEMPLATE: &str = "tokenizer.chat_template";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";

/// Texts of control tokens that end a turn; together with the ids that a file names, they all end an answer.
const END_TEXTS: &[&str] =
    &["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>", "</s>"];
/// Each names one id or a list; the plural forms are Ollama's and this project's, for ids beyond the first two.
const END_KEYS: &[&str] = &[
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.eos_token_ids",
    "tokenizer.ggml.eot_token_ids",
    "tokenizer.ggml.eom_token_ids",
    "tokenizer.ggml.eog_token_ids",
];

/// The names that templates use for tokens.
const OTHER_TOKENS: &[(&str, &str)] = &[
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];

/// A vocabulary with its rules.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    algorithm: Algorithm,
    /// Tokens that only a template or the owner may write.
    control_tokens: SpecialTokens,
    /// Tokens that are found as a whole in any text.
    user_defined_tokens: SpecialTokens,
    bos: Option<u32>,
    /// Whether any text begins with `bos`.
    text_starts_with_bos: bool,
    /// Whether a prompt begins with `bos` where its template has not written it.
    chat_adds_bos: bool,
    end_tokens: Vec<u32>,
    /// Tokens that are no text, sorted.
    control_ids: Vec<u32>,
    chat: Template,
    /// Where the template comes from.
    chat_source: String,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Algorithm {
    ByteLevelBpe(ByteLevelBpe),
    SentencePiece(SentencePiece),
}

/// A file's tokens and rules, before its special tokens and its template are read.
struct VocabParts {
    entries: TokenTable,
    rules: Algorithm,
    /// Whether it is Falcon-E's, whose chat format no control token shows.
    falcon_e: bool,
    /// Whether texts begin with the beginning-of-text token where the file does not say.
    begins: bool,
    notes: Vec<String>,
}

impl VocabParts {
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
        let pre_tokenizer = match pre {
            // What bitnet.cpp's converter writes for a tokenizer that it does not know.
            Some("gpt-2") if Tokenizer::has_llama3_vocabulary(file)? => {
                notes.push(
                    "the file names the gpt-2 pre-tokenizer for llama 3's tokens; llama-bpe is used".into(),
                );
                PreTokenizer::Llama3
            }
            Some(name) => PreTokenizer::named(name).ok_or_else(|| {
                not_read(
                    PRE,
                    name,
                    "use a model with the llama-bpe, falcon3, falcon-e, gpt-2 or default pre-tokenizer",
                )
            })?,
            // The official 2B-4T file names none; its tokenizer is Llama 3's.
            None => {
                notes.push("the file names no pre-tokenizer; llama-bpe is used".into());
                PreTokenizer::Llama3
            }
        };
        let (entries, rules) = ByteLevelBpe::read(file, pre_tokenizer)?;
        let falcon_e = matches!(pre, Some("falcon-e" | "falcon_e"));
        // Falcon's tokenizers split words as Llama 3's does, but add no beginning-of-text token.
        let begins = pre_tokenizer == PreTokenizer::Llama3 && !falcon_e && pre != Some("falcon3");
        Ok(VocabParts { entries, rules: Algorithm::ByteLevelBpe(rules), falcon_e, begins, notes })
    }

    fn pieces(file: &Gguf) -> Result<Self, LoadError> {
        let (entries, rules) = SentencePiece::read(file)?;
        let mut notes = Vec::new();
        if rules.missing_bytes() > 0 {
            notes.push(format!(
                "{} bytes have no token; characters with one are read as the unknown token",
                rules.missing_bytes()
            ));
        }
        Ok(VocabParts {
            entries,
            rules: Algorithm::SentencePiece(rules),
            falcon_e: false,
            begins: true,
            notes,
        })
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model file: a byte-level one (`gpt2`) or a SentencePiece one (`llama`).
    ///
    /// # Errors
    /// An unsupported tokenizer, by its name, and inconsistent metadata, by its key. A chat template that cannot be
    /// used is not an error: the format of the model's family replaces it, and a note says so.
    pub fn read(file: &Gguf) -> Result<Self, LoadError> {
        Self::read_with(file, &ChatTemplate::Auto)
    }

    /// The same with a chat template of the owner's choice.
    ///
    /// # Errors
    /// Those of [`Tokenizer::read`], and a template that was named and is missing or cannot be used.
    pub fn read_with(file: &Gguf, template: &ChatTemplate) -> Result<Self, LoadError> {
        check_tokenizer(file)?;
        let VocabParts { mut entries, rules, falcon_e, begins, mut notes } = VocabParts::read(file)?;
        let bos = token_id(file, "tokenizer.ggml.bos_token_id", entries.vocab.len())?;
        let ends = end_ids(file, &entries)?;
        notes.push(ends_note(&entries.vocab, &ends));
        entries.make_control(&ends);
        entries.make_control(bos.as_slice());
        let family = TemplateFamily::detect(file, &entries, falcon_e)?;
        let names = names(file, &entries)?;
        let chosen = read_template(file, family, names, template, &mut notes)?;
        let declared = file.bool(ADD_BOS)?;
        let begins = declared.unwrap_or(begins);
        let add_bos = declared.unwrap_or(chosen.built_in && family.begins());
        let control_ids = entries.ids_of_kind(TokenKind::Control);
        let marks = SpecialTokens::new(&entries.vocab, control_ids.clone(), TokenKind::Control)?;
        let wholes = SpecialTokens::new(
            &entries.vocab,
            entries.ids_of_kind(TokenKind::UserDefined),
            TokenKind::UserDefined,
        )?;
        let ChosenTemplate { template: chat, source: chat_source, built_in } = chosen;
        if !built_in {
            notes.extend(unknown_tokens_note(&chat, &entries));
        }
        let vocab = entries.vocab;
        Ok(Tokenizer {
            vocab,
            algorithm: rules,
            control_tokens: marks,
            user_defined_tokens: wholes,
            bos,
            text_starts_with_bos: begins,
            chat_adds_bos: add_bos,
            end_tokens: ends,
            control_ids,
            chat,
            chat_source,
            notes,
        })
    }

    /// The same with a clock for chat templates that write the date.
    pub fn with_clock(self, clock: LocalClock) -> Self {
        Tokenizer { chat: self.chat.with_clock(clock), ..self }
    }

    /// Whether a file has Llama 3's vocabulary, which models of several makers share; its control tokens show it.
    ///
    /// # Errors
    /// When the file has no tokens.
    pub fn has_llama3_vocabulary(file: &Gguf) -> Result<bool, LoadError> {
        let tokens = file.strings(TOKENS)?;
        let has = |text: &str| tokens.clone().any(|token| token == text.as_bytes());
        Ok(has("<|begin_of_text|>") && has("<|eot_id|>"))
    }

    /// The chat template that a BitNet b1.58 file should hold, where it holds none or one that the model was not
    /// trained on; `None` for any other file.
    ///
    /// # Errors
    /// What [`Tokenizer::read`] reports about the tokens.
    pub fn template_for(file: &Gguf) -> Result<Option<&'static str>, LoadError> {
        let base = VocabParts::read(file)?;
        let family = TemplateFamily::detect(file, &base.entries, base.falcon_e)?;
        let sound = file.text(TEMPLATE)?.is_some_and(|template| !family.knows_better_than(template));
        Ok((family == TemplateFamily::BitNet && !sound).then(|| family.form()))
    }

    /// A token of a byte-level vocabulary that is taken as a whole where it is a word, and that merges alone do not
    /// produce. With a vocabulary in which merges decide, text is split differently.
    pub fn token_beyond_merges(&self) -> Option<u32> {
        match &self.algorithm {
            Algorithm::ByteLevelBpe(rules) => rules.token_beyond_merges(&self.vocab),
            Algorithm::SentencePiece(_) => None,
        }
    }

    /// Tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes that a token stands for; for a special token these are its name.
    ///
    /// # Panics
    /// When `id` is outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.vocab.get(id)
    }

    /// Whether a token ends an answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.end_tokens.contains(&id)
    }

    /// The tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Whether a token is a control token, which no text becomes.
    pub fn is_control(&self, id: u32) -> bool {
        self.control_ids.binary_search(&id).is_ok()
    }

    /// What was wrong or missing in the file and how it was handled, and which tokens end an answer: short
    /// sentences for a log.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Which chat template prompts are made with, in a few words.
    pub fn chat_template(&self) -> &str {
        &self.chat_source
    }

    /// The ids of a text in which nothing is special. No beginning-of-text token is added.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids);
        ids
    }

    /// The ids of a text that continues another: where a tokenizer puts a space before a text, it does not here.
    pub fn encode_continuation(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.user_defined_tokens.split(text, |part| match part {
            TextPart::Token(id) => ids.push(id),
            TextPart::Text(text) => match &self.algorithm {
                Algorithm::ByteLevelBpe(rules) => rules.encode(&self.vocab, text, &mut ids),
                Algorithm::SentencePiece(rules) => rules.encode_continuation(&self.vocab, text, &mut ids),
            },
        });
        ids
    }

    /// The ids of a text in which the names of special tokens mean these tokens. Only for text of the owner: a
    /// user's text must not be able to end its own turn.
    pub fn encode_with_specials(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.control_tokens.split(text, |part| match part {
            TextPart::Text(text) => self.encode_into(text, &mut ids),
            TextPart::Token(id) => ids.push(id),
        });
        ids
    }

    /// The token that every text begins with: the file's beginning-of-text token where
    /// `tokenizer.ggml.add_bos_token` is true, or where that key is missing and the kind of tokenizer adds one by
    /// default. SentencePiece and Llama 3 do, other byte-level tokenizers do not. Source: `llama-vocab.cpp` of
    /// llama.cpp.
    ///
    /// For a chat prompt the template decides instead; see [`Tokenizer::prompt_chat`].
    pub fn bos_of_text(&self) -> Option<u32> {
        self.bos.filter(|_| self.text_starts_with_bos)
    }

    /// The beginning-of-text token that the file names, whether or not texts begin with it; for that see
    /// [`Tokenizer::bos_of_text`].
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The ids of a conversation in the model's own format, ready for the assistant's next turn. No text of the
    /// conversation becomes a special token.
    ///
    /// # Errors
    /// When the model's chat template rejects the conversation.
    pub fn prompt_chat(&self, turns: &[Turn<'_>]) -> Result<Vec<u32>, PromptError> {
        let prompt = self.chat.prompt(turns).map_err(PromptError::Template)?;
        Ok(self.chat_ids(&prompt))
    }

    /// The same for a conversation in which the model may call `tools`, functions in OpenAI's form; also says how it is
    /// to write a call.
    ///
    /// # Errors
    /// When the model's chat template rejects the conversation.
    pub fn prompt_with_tools(
        &self,
        messages: &[ChatMessage<'_>],
        tools: &[JsonValue],
    ) -> Result<(Vec<u32>, CallSyntax), PromptError> {
        let prompt = self.chat.prompt_with_tools(messages, tools).map_err(PromptError::Template);
        prompt.map(|(prompt, syntax)| (self.chat_ids(&prompt), syntax))
    }

    fn chat_ids(&self, prompt: &Text) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_prompt(prompt, &mut ids);
        if self.chat_adds_bos && self.bos.is_some() && ids.first() != self.bos.as_ref() {
            ids.splice(..0, self.bos);
        }
        ids
    }

    /// Looks for special tokens only in what the template wrote. Everything between two of them is encoded as one
    /// text, as it was in training, whether the template or the conversation contributed it.
    fn encode_prompt(&self, prompt: &Text, ids: &mut Vec<u32>) {
        let text = prompt.as_str();
        let mut plain = 0; // nothing is encoded from here on
        let mut at = 0;
        let end = text.len()..text.len();
        for content in prompt.content_ranges().iter().chain([&end]) {
            let mut place = at;
            self.control_tokens.split(&text[at..content.start], |part| match part {
                TextPart::Text(text) => place += text.len(),
                TextPart::Token(id) => {
                    self.encode_into(&text[plain..place], ids);
                    ids.push(id);
                    place += self.vocab.get(id).len();
                    plain = place;
                }
            });
            at = content.end;
        }
        self.encode_into(&text[plain..], ids);
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        self.user_defined_tokens.split(text, |part| match part {
            TextPart::Token(id) => ids.push(id),
            TextPart::Text(text) => match &self.algorithm {
                Algorithm::ByteLevelBpe(rules) => rules.encode(&self.vocab, text, ids),
                Algorithm::SentencePiece(rules) => rules.encode(&self.vocab, text, ids),
            },
        });
    }
}

fn not_read(key: &str, name: &str, way_out: &str) -> LoadError {
    LoadError::key(key, format!("\"{}\" is not read by this version; {way_out}", escaped(name)))
}

/// The template that prompts are made with, and where it comes from.
struct ChosenTemplate {
    template: Template,
    /// Whether it is built in.
    built_in: bool,
    source: String,
}

/// Chooses the template, and notes why where it is not simply the file's.
fn read_template(
    file: &Gguf,
    family: TemplateFamily,
    names: Names,
    choice: &ChatTemplate,
    notes: &mut Vec<String>,
) -> Result<ChosenTemplate, LoadError> {
    let own = file.text(TEMPLATE)?;
    let compile = |text: &str| Template::new(text, names.clone());
    let way_out = "leave model.chat_template out, set it to \"built-in\", or to the path of a template";
    let why = match (choice, own) {
        (ChatTemplate::Text { place, source }, _) => {
            let template = compile(source).map_err(|why| {
                LoadError::new(
                    "chat_template",
                    format!("{place}: {why}; correct it, or leave model.chat_template out"),
                )
            })?;
            notes.push(format!("the chat template of {place} is used, as model.chat_template says"));
            return Ok(ChosenTemplate { template, built_in: false, source: place.clone() });
        }
        (ChatTemplate::File, None) => {
            return Err(LoadError::key(TEMPLATE, format!("the file has no chat template; {way_out}")));
        }
        (ChatTemplate::File, Some(text)) => {
            let template =
                compile(text).map_err(|why| LoadError::key(TEMPLATE, format!("{why}; {way_out}")))?;
            return Ok(ChosenTemplate { template, built_in: false, source: "the file's own".into() });
        }
        (ChatTemplate::BuiltIn, _) => "model.chat_template is \"built-in\"".into(),
        (ChatTemplate::Auto, None) => "the file has no chat template".into(),
        (ChatTemplate::Auto, Some(text)) if family.knows_better_than(text) => {
            "the file's chat template is not what the model was trained on".into()
        }
        (ChatTemplate::Auto, Some(text)) => match compile(text) {
            Ok(template) => {
                return Ok(ChosenTemplate { template, built_in: false, source: "the file's own".into() });
            }
            Err(why) => format!("the file's chat template {why}"),
        },
    };
    let source = match family {
        TemplateFamily::Plain => "none: the model continues the text without a template".to_owned(),
        family => format!("built-in: {}'s form", family.name()),
    };
    notes.push(match family {
        TemplateFamily::Plain => format!("{why}; the model continues the text without a template"),
        family => format!("{why}; {}'s form is used", family.name()),
    });
    let template = compile(family.form()).map_err(|why| LoadError::key(TEMPLATE, why))?;
    Ok(ChosenTemplate { template, built_in: true, source })
}

/// Says which texts that look like special tokens a template writes and the vocabulary lacks: the model sees them
/// as letters.
fn unknown_tokens_note(template: &Template, entries: &TokenTable) -> Option<String> {
    /// More names than that are not written into one line.
    const MAX_SHOWN: usize = 8;
    let ids = entries.by_text();
    let mut unknown: Vec<String> =
        template.samples().flat_map(|text| Template::special_looking(&text)).collect();
    unknown.retain(|name| !ids.contains_key(name.as_bytes()));
    unknown.sort_unstable();
    unknown.dedup();
    unknown.truncate(MAX_SHOWN);
    let names: Vec<String> = unknown.iter().map(|name| escaped(name)).collect();
    (!names.is_empty()).then(|| {
        format!("the chat template writes {}, which the vocabulary has not as a token", names.join(", "))
    })
}

/// The names that templates call tokens by.
fn names(file: &Gguf, entries: &TokenTable) -> Result<Names, LoadError> {
    let name = |key: &str| -> Result<Option<String>, LoadError> {
        let id = token_id(file, key, entries.vocab.len())?;
        Ok(id.map(|id| String::from_utf8_lossy(entries.vocab.get(id)).into_owned()))
    };
    let mut others = Vec::new();
    for (called, key) in OTHER_TOKENS {
        others.extend(name(key)?.map(|text| (*called, text)));
    }
    Ok(Names { bos: name("tokenizer.ggml.bos_token_id")?, eos: name("tokenizer.ggml.eos_token_id")?, others })
}

/// Every token that ends an answer. Without token types, a token whose text is an end marker counts as one; with
/// types it must be a control token: Llama 3's vocabulary has `</s>` as ordinary text.
fn end_ids(file: &Gguf, entries: &TokenTable) -> Result<Vec<u32>, LoadError> {
    let ids = entries.by_text();
    let is_mark = |id: &u32| !entries.has_types || entries.kind(*id) == TokenKind::Control;
    let texts = END_TEXTS.iter().filter_map(|text| ids.get(text.as_bytes()).copied());
    let mut ends: Vec<u32> = texts.filter(is_mark).collect();
    for key in END_KEYS {
        ends.extend(token_ids(file, key, entries.vocab.len())?);
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
