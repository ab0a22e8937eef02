//! The forms that families of models were trained on, for files that have no template or a wrong one.

use super::super::vocab::{TokenKind, TokenTable};
use crate::engine::error::LoadError;
use crate::engine::gguf::Gguf;

/// The model families with a built-in chat template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum TemplateFamily {
    /// `User: …<|eot_id|>Assistant: `. Source: `LLM_CHAT_TEMPLATE_BITNET` of ik_llama.cpp and
    /// `tokenizer_config.json` of microsoft/bitnet-b1.58-2B-4T; the template inside the official file is
    /// wrong.
    BitNet,
    /// The same for a vocabulary without the mark: a turn ends with its line.
    BitNetLines,
    /// `<|start_header_id|>user<|end_header_id|>\n\n…<|eot_id|>`. Source: Meta's model card.
    Llama3,
    /// `<|user|>\n…\n<|assistant|>\n`. Source: `tokenizer_config.json` of Falcon3-7B-Instruct.
    Falcon3,
    /// `user…\nassistant\n`. Source: `LLM_CHAT_TEMPLATE_FALCON_E` of ik_llama.cpp.
    FalconE,
    /// `<|im_start|>user\n…<|im_end|>\n`, which has no one source.
    ChatMl,
    /// A model without a chat form, as 1bitLLM's: it goes on with the text.
    Plain,
}

/// What the official file's template writes, which nothing was trained on. Source: issue 339 of
/// ik_llama.cpp; the text stands in bitnet.cpp's converter.
const WRONG: &str = "BITNETAssistant";

impl TemplateFamily {
    /// The family of a file. `falcon_e` is what its pre-tokenizer says.
    pub fn detect(file: &Gguf, entries: &TokenTable, falcon_e: bool) -> Result<Self, LoadError> {
        let ids = entries.by_text();
        let marks = |texts: &[&str]| {
            let is_mark = |id: &u32| !entries.has_types || entries.kind(*id) == TokenKind::Control;
            texts.iter().all(|text| ids.get(text.as_bytes()).is_some_and(is_mark))
        };
        let arch = file.text("general.architecture")?.unwrap_or_default();
        Ok(match arch {
            // BitNet's vocabulary has Llama 3's marks too, but was not trained with them.
            "bitnet-b1.58" | "bitnet-25" if marks(&["<|eot_id|>"]) => TemplateFamily::BitNet,
            "bitnet-b1.58" | "bitnet-25" => TemplateFamily::BitNetLines,
            // What llama.cpp's own converter calls 2B-4T, and 1bitLLM's models, whose vocabulary is another.
            "bitnet" if marks(&["<|begin_of_text|>", "<|eot_id|>"]) => TemplateFamily::BitNet,
            _ if marks(&["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]) => TemplateFamily::Llama3,
            _ if marks(&["<|user|>", "<|assistant|>"]) => TemplateFamily::Falcon3,
            _ if marks(&["<|im_start|>", "<|im_end|>"]) => TemplateFamily::ChatMl,
            _ if falcon_e => TemplateFamily::FalconE,
            _ => TemplateFamily::Plain,
        })
    }

    /// Whether a template is known to be wrong for it. Any other is believed: a fine-tune has its own.
    pub fn knows_better_than(self, template: &str) -> bool {
        matches!(self, TemplateFamily::BitNet | TemplateFamily::BitNetLines) && template.contains(WRONG)
    }

    /// Its form as a template.
    pub fn form(self) -> &'static str {
        match self {
            TemplateFamily::BitNet => {
                // Whole as a file must have it, for `convert` writes it into files.
                "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
                 {{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}\
                 {% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
            }
            TemplateFamily::BitNetLines => {
                "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}{{ '\\n' }}\
                 {% endfor %}Assistant: "
            }
            TemplateFamily::Llama3 => {
                "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\\n\\n' }}\
                 {{ m.content | trim }}<|eot_id|>{% endfor %}\
                 <|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}"
            }
            TemplateFamily::Falcon3 => {
                "{% for m in messages %}<|{{ m.role }}|>{{ '\\n' }}{{ m.content }}\
                 {% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}\
                 <|assistant|>{{ '\\n' }}"
            }
            TemplateFamily::FalconE => {
                "{% for m in messages %}{{ m.role }}{{ m.content }}{{ '\\n' }}{% endfor %}assistant{{ '\\n' }}"
            }
            TemplateFamily::ChatMl => {
                "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}{{ m.content }}<|im_end|>\
                 {{ '\\n' }}{% endfor %}<|im_start|>assistant{{ '\\n' }}"
            }
            TemplateFamily::Plain => {
                "{% for m in messages %}{{ m.content }}{{ '' if loop.last else '\\n' }}{% endfor %}"
            }
        }
    }

    /// Its name in a note.
    pub fn name(self) -> &'static str {
        match self {
            TemplateFamily::BitNet | TemplateFamily::BitNetLines => "bitnet b1.58",
            TemplateFamily::Llama3 => "llama 3",
            TemplateFamily::Falcon3 => "falcon3",
            TemplateFamily::FalconE => "falcon-e",
            TemplateFamily::ChatMl => "chatml",
            TemplateFamily::Plain => "plain text",
        }
    }

    /// Whether its prompts begin with the beginning-of-text token where the file does not say. Falcon's
    /// templates write none, and its tokenizers add none.
    pub fn begins(self) -> bool {
        !matches!(self, TemplateFamily::Falcon3 | TemplateFamily::FalconE | TemplateFamily::ChatMl)
    }
}
